"""
Decoder layers with fewer, larger operators: what CPUs spend on a small batch is mostly calls.

Attention modules, gated MLPs and RMS norms of transformers are replaced by modules that compute the
same with merged matrix products and small kernels of our own. Nothing is recognised by name: a
replacement takes its module's place only if it gives the same numbers in a real forward pass of
the model, and the whole model is tested afterwards like any other.
"""
