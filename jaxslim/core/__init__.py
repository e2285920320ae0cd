"""The core: trace, plan and cut any JAX program. It knows no Flax, no parameter names and no BatchNorm."""
