"""HTTP: bytes to the schema, the schema to bytes."""
