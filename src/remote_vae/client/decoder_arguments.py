"""What a pipeline gives its decoder besides the latent, as arguments of `RemoteModel.decode`."""

from collections.abc import Mapping
from typing import Any

from remote_vae.protocol.kinds import LARGEST_SEED

Arguments = dict[str, Any]


def arguments_of(card: Mapping[str, Any], temb: Any, generator: Any) -> list[Arguments]:
    """One set for the whole batch, one for each latent, or none, as the model of this card takes them.

    With timesteps the pipeline has mixed the noise into the latent.
    """
    if temb is not None:
        return [{"timestep": each} for each in temb.flatten().tolist()]
    if generator is None or "seed" not in card.get("takes", ()):
        return []
    return [{"seed": seed_of(each)} for each in (generator if isinstance(generator, list) else [generator])]


def seed_of(generator: Any) -> int:
    """A seed drawn from the generator. An unused one gives its own seed, for which the noise is that of a local VAE."""
    state = generator.get_state()
    unused = type(generator)(generator.device).manual_seed(generator.initial_seed()).get_state()
    drawn = state[:1].long().to(generator.device).random_(LARGEST_SEED, generator=generator)
    own = bool((state == unused).all()) and generator.initial_seed() <= LARGEST_SEED
    return int(generator.initial_seed() if own else drawn)
