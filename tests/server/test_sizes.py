"""Amounts of memory as people write them."""

import psutil
import pytest

from remote_vae.errors import ConfigurationError
from remote_vae.server.settings import read_settings

SIZES = {
    "12000000000": 12 * 10**9,
    "12GB": 12 * 10**9,
    "12 gb": 12 * 10**9,
    "1.5GiB": 3 * 2**29,
    "512MiB": 2**29,
    "8KiB": 8192,
    "80%": 0.8,
    "100%": 1.0,
}


@pytest.mark.parametrize("text", SIZES)
def test_what_is_an_amount(text: str) -> None:
    """A number of bytes, a number with a unit, or a share, which stays one until the device is known."""
    settings = read_settings({"memory_budget": text, "weights_budget": text})
    assert settings.memory_budget == settings.weights_budget == SIZES[text]
    assert type(settings.memory_budget) is type(SIZES[text])


def test_limits_are_amounts_too() -> None:
    """Each limit in bytes takes units; its shares are of the machine's memory."""
    settings = read_settings({"max_body_bytes": "3GB", "max_head_bytes": "64KiB", "max_reply_bytes": "25%"})
    assert (settings.max_body_bytes, settings.max_head_bytes) == (3 * 10**9, 65536)
    assert 0 < settings.max_reply_bytes <= psutil.virtual_memory().total // 4


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0%", "101%", "12G", "1e9", "12 parsecs", "1GB 2GB", "³GB"])
def test_what_is_none(text: str) -> None:
    """What is no amount is refused with the setting's name."""
    for name in ("memory_budget", "weights_budget", "max_body_bytes"):
        with pytest.raises(ConfigurationError, match=name):
            read_settings({name: text})


def test_a_limit_keeps_its_least_value() -> None:
    """An amount that is written with a unit is held to the bounds of its setting."""
    with pytest.raises(ConfigurationError, match="max_head_bytes"):
        read_settings({"max_head_bytes": "1B"})
