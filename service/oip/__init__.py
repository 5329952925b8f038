"""The Open Inference Protocol, version 2: tensors to requests, answers to tensors, over HTTP and gRPC."""
