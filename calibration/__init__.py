"""The range of the activations of any ``nn.Module`` on any batches. A measurement; what to quantize is decided elsewhere.

Read in this order: ``dataset`` (which images, named and hashed), ``calibrators`` (one number from a stream of tensors),
``collect`` (watch a model's sites), ``table`` (what was measured, as a file), ``samples`` (the small photographs that come with
the package).
"""
