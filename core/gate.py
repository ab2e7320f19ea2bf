"""What a score means to the sampler: a constraint that is feasible at 0 or below."""

# Raise it with any change of training, rendering or scoring after which the same study, weights and seeds would score
# otherwise than before: a study that was started under another version is not gone on with unasked.
SCORING_VERSION = 2
CHALLENGE_GATE = 6.0  # the Kolors LoRA story challenge's own; a study may set another
FAILED_BY_PARAMETERS = 20.0


def passes(mean: float, gate: float) -> bool:
    return mean >= gate


def notes_on_gate(gate: float) -> list[str]:
    return [f"objective.gate is {gate:g}, but the challenge's gate is {CHALLENGE_GATE:g}"] if gate != CHALLENGE_GATE else []


def constraint(mean: float, gate: float) -> float:
    """How far a complete story is from the gate; the further under it, the larger."""
    return gate - mean
