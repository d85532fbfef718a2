"""The training dataset: samples, augmentation, sampler, collator and streaming."""
