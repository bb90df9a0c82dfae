"""Make the demo model: text, tokenizer, training, GGUF files, measurement."""
