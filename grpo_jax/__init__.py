"""Policy optimization in JAX: pure functions, shared prompts, exact gradients."""
