"""The inverse of a layer's Hessian, as GPTQ and SparseGPT read it: the upper Cholesky factor U of H⁻¹ = Uᵀ U.

Row j of U, divided by U_jj, is row j of the inverse over the columns from j on, divided by its first entry, U_jj²
(Frantar et al. 2023, 'GPTQ', section 3.3; Frantar & Alistarh 2023, 'SparseGPT', section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trivet.errors import TrivetError


def damped(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """(H, dead): `gram` [I, I] in float64 with `damping` times its mean diagonal on the diagonal, and the mask of
    inputs that are always zero, whose place there is 1 before."""
    h = gram.detach().to(torch.float64, copy=True)
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damping * diagonal.mean()
    return h, dead


def inverse_factor(h: Tensor) -> Tensor:
    """U, [I, I] in float64. Raises TrivetError where H can't be factored."""
    try:
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    except torch.linalg.LinAlgError:
        raise TrivetError("the calibration text says too little about a layer's inputs: their second moments can't be "
                          "factored", field="damping", mend="raise --damping, or give more calibration text") from None
