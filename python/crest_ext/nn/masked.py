"""Linear and Conv2d with a mask that drops weights. Masks are bool buffers: they copy, save, move and compile."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from crest_ext.ops import apply_mask, masked_linear


class Masked(nn.Module):
    """What MaskedLinear and MaskedConv2d share.

    The forward pass sees weight * mask, and bias * bias_mask where there is one; the parameters keep the dropped
    values. So whatever an optimizer does to a dropped weight, the effective weight stays exactly 0.

    A state_dict without masks comes from a plain module: loading it drops what is exactly 0 in it. The other way,
    a plain module refuses a masked state_dict (unexpected key `mask`): load `materialize(model).state_dict()`.

    Attributes:
        mask: bool buffer, shape of weight; False drops the weight.
        bias_mask: bool buffer, shape of bias; None keeps the whole bias.
        straight_through: the gradient of weight and bias is the dense gradient of their masked product, which a
            method needs to bring dropped weights back; False gives that gradient times the mask. Not saved.
    """

    plain: ClassVar[type[nn.Module]]  # the class this one drops in for
    weight: Tensor
    bias: Any  # Tensor | None, which Linear and Conv2d declare differently
    mask: Tensor
    bias_mask: Tensor | None
    straight_through: bool

    def keep_all(self, mask_bias: bool = True) -> None:
        """(Re)create the masks with nothing dropped; mask_bias=False leaves the bias unmasked."""
        self.straight_through = False
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))
        masked = mask_bias and self.bias is not None
        self.register_buffer("bias_mask", torch.ones_like(self.bias, dtype=torch.bool) if masked else None)

    def masked_parameters(self) -> list[tuple[Tensor, Tensor]]:
        """The parameters that have a mask, each with it: weight and perhaps bias."""
        pairs = [(self.weight, self.mask)]
        if self.bias is not None and self.bias_mask is not None:
            pairs.append((self.bias, self.bias_mask))
        return pairs

    def effective_weight(self) -> Tensor:
        return apply_mask(self.weight, self.mask, self.straight_through)

    def effective_bias(self) -> Tensor | None:
        bias: Tensor | None = self.bias
        return (
            bias if bias is None or self.bias_mask is None else apply_mask(bias, self.bias_mask, self.straight_through)
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, mask in (("weight", "mask"), ("bias", "bias_mask")):
            if getattr(self, mask) is not None and prefix + name in state_dict:
                state_dict.setdefault(prefix + mask, state_dict[prefix + name] != 0)
        super()._load_from_state_dict(state_dict, prefix, *args)


M = TypeVar("M", bound=Masked)


class MaskedLinear(Masked, nn.Linear):
    """torch.nn.Linear that drops weights: x (weight * mask)^T + bias. Arguments as there; see `Masked`.

    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, eq. 1.
    """

    plain = nn.Linear

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, mask_bias: bool = True, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.keep_all(mask_bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, mask_bias: bool = True) -> MaskedLinear:
        """A new module on the Parameter objects of `linear`, so that its optimizer keeps working."""
        return _convert(cls, _twin(linear), mask_bias)

    def forward(self, x: Tensor) -> Tensor:
        return masked_linear(x, self.weight, self.mask, self.effective_bias(), self.straight_through)


class MaskedConv2d(Masked, nn.Conv2d):
    """torch.nn.Conv2d that drops weights: convolution by weight * mask. Arguments as there; see `Masked`.

    Source: Guo, Yao, Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, eq. 1.
    """

    plain = nn.Conv2d

    def __init__(self, *args: Any, mask_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_all(mask_bias)

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, mask_bias: bool = True) -> MaskedConv2d:
        """A new module on the Parameter objects of `conv`, so that its optimizer keeps working."""
        return _convert(cls, _twin(conv), mask_bias)

    def effective_weight(self) -> Tensor:
        """In the memory format of weight, which the convolution follows: apply_mask's result is contiguous."""
        weight = self.weight
        if weight.stride()[1::2] != (1, weight.shape[1]):  # as nothing but channels_last has them
            return super().effective_weight()
        weight, mask = (t.permute(0, 2, 3, 1) for t in (weight, self.mask))
        return apply_mask(weight, mask, self.straight_through).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.effective_weight(), self.effective_bias())
        return y


def mask_(module: nn.Module, mask_bias: bool = True) -> MaskedLinear | MaskedConv2d:
    """Turn a Linear or Conv2d into its masked drop-in, in place, with nothing dropped yet.

    The object stays the same, and with it its place in the model, its parameters and its hooks. What is masked
    already keeps its masks and only gains a bias_mask, if it has none and `mask_bias` asks for one.

    Raises:
        ValueError: the module is not exactly a Linear or Conv2d, or its weight is not a Parameter of its own: see
            `reason_not_to_mask`.
    """
    if reason := reason_not_to_mask(module):
        raise ValueError(f"mask_: module must be a plain Linear or Conv2d, got one that {reason}")
    if isinstance(module, (MaskedLinear, MaskedConv2d)):
        if mask_bias and module.bias is not None and module.bias_mask is None:
            module.bias_mask = torch.ones_like(module.bias, dtype=torch.bool)
        return module
    if isinstance(module, nn.Linear):
        return _convert(MaskedLinear, module, mask_bias)
    return _convert(MaskedConv2d, module, mask_bias)


def reason_not_to_mask(module: Any) -> str | None:
    """Why `mask_` refuses a module, or None. A subclass may use its weight elsewhere than in forward."""
    if type(module) not in (nn.Linear, nn.Conv2d, MaskedLinear, MaskedConv2d):
        return f"is a {type(module).__name__}"
    if "weight" not in module._parameters:
        return "computes its weight from other parameters"
    if module.weight.numel() == 0:
        return "has no weights"
    return None


def _twin(module: nn.Module) -> nn.Module:
    twin = type(module).__new__(type(module))
    twin.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in module.__dict__.items()}
    return twin


def _convert(cls: type[M], module: nn.Module, mask_bias: bool) -> M:
    module.__class__ = cls
    masked = cast(M, module)
    masked.keep_all(mask_bias)
    return masked
