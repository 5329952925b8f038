"""gRPC: messages to the schema, the schema to messages."""
