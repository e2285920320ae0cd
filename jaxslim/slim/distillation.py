"""Knowledge distillation: a loss that pulls a network's outputs towards those of another."""

import jax
import jax.numpy as jnp
import optax

from jaxslim.errors import InputError


def distillation(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float = 4.0) -> jax.Array:
    """How far a student's softened classes are from its teacher's (Hinton et al. 2015, section 2).

    The loss is T**2 KL(softmax(teacher / T) || softmax(student / T)). The factor T**2 keeps gradients as large as
    those of the loss on labels, whatever the temperature T.

    Args:
      student_logits: (n, classes), of the network that is trained.
      teacher_logits: (n, classes), constants; no gradient flows into them.
      temperature: T, above 0; the higher, the more the teacher's small probabilities count.

    Returns:
      (n,) losses, at least 0 but for rounding, in float32 or wider.

    Raises:
      InputError: shapes that differ, or a temperature that is not above 0.

    Example:
      >>> logits = jnp.log(jnp.array([[1.0, 3.0]]))
      >>> distillation(logits, logits, 2.0).tolist()
      [0.0]
      >>> round(float(distillation(jnp.zeros((1, 2)), logits, 1.0)[0]), 4)  # ln 2 - H(1/4, 3/4)
      0.1308
    """
    if jnp.shape(student_logits) != jnp.shape(teacher_logits):
        shapes = (
            f"The student's logits have shape {jnp.shape(student_logits)}, the teacher's {jnp.shape(teacher_logits)}"
        )
        raise InputError(f"{shapes}; both must tell the same classes of the same images apart.")
    if not temperature > 0:
        raise InputError(f"The temperature is {temperature}; it must be above 0, for example 4.")
    kind = jnp.promote_types(jnp.result_type(student_logits, teacher_logits), jnp.float32)
    student = jax.nn.log_softmax(jnp.asarray(student_logits, kind) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(jnp.asarray(teacher_logits, kind)) / temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)
