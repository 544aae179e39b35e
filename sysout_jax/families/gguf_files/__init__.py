"""GGUF files: header, metadata as a published config, tensors and tokenizer as published ones."""
