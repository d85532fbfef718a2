"""LoRA adapters: adding, loading, merging and saving them, their target modules, and a quantized base."""
