"""Distilling Step-by-Step (Hsieh et al. 2023) as a JAX/Flax T5 trainer."""
