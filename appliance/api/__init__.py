"""Face the clients: one use case, translated to gRPC and to OpenAI-compatible REST."""
