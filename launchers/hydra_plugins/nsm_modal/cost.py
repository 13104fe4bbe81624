"""What jobs cost: seconds of a container times the configured rates. Every sum is an estimate."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra_plugins.nsm_modal.config import LauncherError, ModalLauncherConfig


def usd_per_second(settings: ModalLauncherConfig, gpu: str | None) -> float:
    """Price of one container with ``gpu`` (``A100-40GB``, ``H100:2``), in US dollars a second.

    Raises:
        LauncherError: if ``rates.gpu_second`` has no price for it.
    """
    rates = settings.rates
    price = settings.cpu * rates.core_second + settings.memory / 1024 * rates.gib_second
    if gpu is None:
        return price
    name, _, count = gpu.partition(":")
    if name not in rates.gpu_second:
        raise LauncherError(
            f"there is no price for hydra.launcher.gpu={name}: hydra.launcher.rates.gpu_second has "
            f"{', '.join(rates.gpu_second)}; add it with +hydra.launcher.rates.gpu_second.{name}=<dollars a second>"
        )
    return price + rates.gpu_second[name] * int(count or 1)


def dearest(settings: ModalLauncherConfig) -> float:
    """Price a second of the most expensive container that the settings allow."""
    return max(usd_per_second(settings, gpu) for gpu in settings.gpus)


@dataclass(frozen=True)
class Estimate:
    """What a launch will cost, in US dollars."""

    usd: float
    """If each job takes the seconds expected of it, or its whole time limit where nothing is expected."""
    at_most: float
    """If each job uses up its time limit in every attempt."""
    known: bool
    """Whether every job has an expectation."""

    def __str__(self) -> str:
        about = f"about ${self.usd:.2f}" if self.known else f"up to ${self.usd:.2f} (one attempt to the time limit)"
        return f"{about}; ${self.at_most:.2f} if every attempt of every job ran to its time limit"


def estimate(settings: ModalLauncherConfig, expected_seconds: Sequence[float | None]) -> Estimate:
    """Cost of jobs of which each takes so many seconds, or unknown."""
    rate = dearest(settings)
    seconds = sum(settings.timeout if expected is None else expected for expected in expected_seconds)
    attempts = 1 + settings.retries.max_retries
    return Estimate(
        usd=seconds * rate,
        at_most=len(expected_seconds) * attempts * settings.timeout * rate,
        known=None not in expected_seconds,
    )
