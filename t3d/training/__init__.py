"""Training: one trainer for pretraining and for every distillation method."""
