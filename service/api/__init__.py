"""The API apart from how it travels: schema, operations, the context of a request, its handling."""
