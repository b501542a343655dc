"""The arithmetic of compression: tensors in, tensors out, nothing known of models."""
