"""LoRA on a native Florence-2: where it attaches, how it begins, how it is read, merged and saved. Trains nothing."""
