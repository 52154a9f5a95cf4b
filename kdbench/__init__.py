"""A benchmark suite for knowledge distillation in image classification."""

__version__ = "0.1.0"
