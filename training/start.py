"""Where training starts: the best linear code that the layers can hold, fitted layer by layer in closed form.

From random weights, an hour on a CPU only just reaches what linear algebra knows beforehand. So each residual branch
starts at zero, which leaves a chain of linear layers: the encoder's downsamplers take principal components of 2x2
blocks, the decoder's upsamplers and both last layers are fitted by least squares. Channels that are not needed for
this keep their random weights.
"""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

ROWS = 60_000  # of a least-squares problem, at most
RIDGE = 1e-5  # relative to the mean square of the inputs
CARRIER = 2.0  # root mean square of the constant that the last norms see


@torch.no_grad()
def fit_linear(model: AutoencoderKL, pictures: Tensor, log_variance: float) -> None:
    """Set the weights in place, from a batch of pictures in [-1, 1]; the posterior starts with one fixed variance."""
    encoder, decoder, count = model.encoder, model.decoder, model.config.latent_channels
    for name, value in model.named_parameters():
        if ".conv2." in name:
            value.zero_()
    for last in (encoder.mid_block.resnets[-1], decoder.up_blocks[-1].resnets[-1]):
        _carry(last.conv2)
    _identity(encoder.conv_in, 3)
    targets, known = [pictures], 3
    for block in encoder.down_blocks[:-1]:
        _identity(block.resnets[0].conv_shortcut, known)
        conv, before = block.downsamplers[0].conv, known
        known = min(4 * known, conv.out_channels) if block is not encoder.down_blocks[-2] else count
        targets.append(_components(conv, _input_of(conv, lambda: encoder(pictures)), before, known))
    scale = targets[-1].std((0, 2, 3))
    targets[-1] = targets[-1] / scale[:, None, None]
    conv.weight[:count] /= scale[:, None, None, None]
    conv.bias[:count] /= scale
    _mirror(conv, count)
    _identity(encoder.down_blocks[-1].resnets[0].conv_shortcut, 2 * count)
    _regress(encoder.conv_out, _input_of(encoder.conv_out, lambda: encoder(pictures)), targets[-1])
    encoder.conv_out.weight[count:] = 0
    encoder.conv_out.bias[count:] = log_variance

    latents = model.encode(pictures).latent_dist.mode()
    _identity(decoder.conv_in, count)
    for block, target in zip(decoder.up_blocks[:-1], reversed(targets[:-1]), strict=True):
        _identity(block.resnets[0].conv_shortcut, block.resnets[0].out_channels)
        conv = block.upsamplers[0].conv
        _regress(conv, _input_of(conv, lambda: decoder(latents)), target)
    _identity(decoder.up_blocks[-1].resnets[0].conv_shortcut, 3)
    _mirror(decoder.up_blocks[-1].resnets[0].conv_shortcut, 3)
    _regress(decoder.conv_out, _input_of(decoder.conv_out, lambda: decoder(latents)), pictures)


def _input_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """What the layer is given while the model runs."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    run()
    handle.remove()
    return found[0]


def _carry(conv: nn.Conv2d) -> None:
    """Two constant channels, so large that the next norm's divisor hardly depends on the picture."""
    conv.bias[-2:] = torch.tensor([1.0, -1.0]) * CARRIER * (conv.out_channels / 2) ** 0.5


def _identity(conv: nn.Conv2d | None, count: int) -> None:
    """The first `count` channels pass unchanged; no layer, no change."""
    if conv is None:
        return
    count, middle = min(count, conv.out_channels, conv.in_channels), conv.kernel_size[0] // 2
    conv.weight[:count] = 0
    conv.bias[:count] = 0
    conv.weight[range(count), range(count), middle, middle] = 1


def _mirror(conv: nn.Conv2d, count: int) -> None:
    """A second, negative copy of the first channels: silu(x) - silu(-x) = x, so both together pass SiLU unharmed."""
    conv.weight[count : 2 * count] = -conv.weight[:count]
    conv.bias[count : 2 * count] = -conv.bias[:count]


def _components(conv: nn.Conv2d, inputs: Tensor, known: int, count: int) -> Tensor:
    """The first outputs become the principal components of 2x2 blocks of the first `known` channels."""
    blocks = functional.unfold(inputs[:, :known, : inputs.shape[2] // 2 * 2, : inputs.shape[3] // 2 * 2], 2, stride=2)
    rows = blocks.transpose(1, 2).flatten(0, 1).double()
    mean = rows.mean(0)
    _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))
    basis = vectors.flip(1)[:, :count].T
    conv.weight[:count] = 0
    conv.weight[:count, :known, :2, :2] = basis.unflatten(1, (known, 2, 2)).float()
    conv.bias[:count] = -(basis @ mean).float()
    return conv(functional.pad(inputs, (0, 1, 0, 1)))[:, :count]


def _regress(conv: nn.Conv2d, inputs: Tensor, targets: Tensor) -> None:
    """The first outputs become the least-squares estimate of the targets."""
    taps, count = functional.unfold(inputs, 3, padding=1), targets.shape[1]
    step = max(1, taps.shape[0] * taps.shape[2] // ROWS)
    rows = taps.transpose(1, 2).flatten(0, 1)[::step].double()
    wanted = targets.flatten(2).transpose(1, 2).flatten(0, 1)[::step].double()
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    gram = rows.T @ rows
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, rows.T @ wanted).float().T
    conv.weight[:count] = solution[:, :-1].unflatten(1, (conv.in_channels, 3, 3))
    conv.bias[:count] = solution[:, -1]
