"""A benchmark suite for knowledge distillation in image classification."""

__version__ = "0.2.0"
