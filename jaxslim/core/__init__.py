"""The core: trace, plan and cut any JAX program. It knows no Flax and no BatchNorm."""
