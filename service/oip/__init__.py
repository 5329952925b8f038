"""The Open Inference Protocol, version 2, apart from how it travels: tensors to requests, answers to tensors."""
