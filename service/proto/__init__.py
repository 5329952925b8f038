"""The gRPC door's messages: the `.proto` files, and what protoc makes of them."""
