"""What a thousand pictures cost: `cost.py --price 2.10 --service-ms 35 --date 2026-11-20`.

    cost of 1000 = price per hour / 3600 x 1000 x seconds of one picture / share of the time that is busy

Prices and service times are yours: a price holds for a day and a place, and a service time for a GPU, a model and a
size; `remote-vae` measures the latter (header `server-timing` of any reply, or `ray_serve.py`). Nothing here is a
measurement of ours.
"""

import argparse
import sys
from datetime import date


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="append", metavar="NAME=PRICE,MS", help="a GPU: price per hour, ms a picture")
    parser.add_argument("--price", type=float, help="of one GPU for an hour")
    parser.add_argument("--service-ms", type=float, help="of one picture")
    parser.add_argument("--busy", type=float, default=0.7, help="share of the time that the GPU works (0.7)")
    parser.add_argument("--date", type=date.fromisoformat, required=True, help="of the prices, like 2026-11-20")
    parser.add_argument("--currency", default="USD")
    arguments = parser.parse_args()
    rows = [_read(text, parser) for text in arguments.gpu or ()]
    if arguments.price is not None and arguments.service_ms is not None:
        rows.append(("GPU", arguments.price, arguments.service_ms))
    if not rows:
        parser.error("give --gpu NAME=PRICE,MS, or --price and --service-ms")
    if not 0 < arguments.busy <= 1:
        parser.error(f"--busy {arguments.busy:g} must be above 0 and at most 1")
    print(f"| GPU | {arguments.currency}/hour, {arguments.date} | ms a picture | {arguments.currency} for 1000 |")
    print("|---|--:|--:|--:|")
    for name, price, ms in rows:
        print(f"| {name} | {price:.2f} | {ms:g} | {cost_of_thousand(price, ms / 1000, arguments.busy):.4f} |")
    return 0


def cost_of_thousand(price: float, seconds: float, busy: float) -> float:
    """*Units*: price of an hour, seconds of one picture, share of the time."""
    return price / 3600 * 1000 * seconds / busy


def _read(text: str, parser: argparse.ArgumentParser) -> tuple[str, float, float]:
    name, _, rest = text.partition("=")
    price, _, ms = rest.partition(",")
    try:
        found = float(price), float(ms)
    except ValueError:
        parser.error(f"--gpu {text!r} is not NAME=PRICE,MS")
    if min(found) <= 0:
        parser.error(f"--gpu {text!r}: price and milliseconds must be above 0")
    return name, *found


if __name__ == "__main__":
    sys.exit(main())
