"""Graders: whether a model's answer is right, decided in processes that may be killed."""
