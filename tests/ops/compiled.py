"""Compiles the Triton kernels for cards that need not be there.

`python tests/ops/compiled.py 90:bf16,fp32 80:bf16:scan_forward` compiles all kernels for one capability and one kernel
for another. It prints, for each capability, kernel and dtype, the shared memory in bytes, and the registers and stack
bytes per thread.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mvar.ops.gpu import mamba, noise, norms
from mvar.ops.gpu.launch import ROWS, TOKENS, warps

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Of M-VAR-d16: width 1024, inner width 2048, heads of 64.
SCAN = {"P": 64, "N": 64, "num_warps": mamba.WARPS}
GATE = {"P": 64, "WIDTH": 2048, "num_warps": warps(2048)}
CONV = {"HAS_TAIL": True, "W": 4, "TOKENS": TOKENS, "CHANNELS": mamba.CHANNELS}
ADALN = {"ADD": True, "NORM": True, "WIDTH": 1024, "num_warps": warps(1024)}
HEADS = {"TOKENS": TOKENS, "d": 64}
KERNELS = {
    mamba.conv_forward: {**CONV, "HEADS": 32},
    mamba.conv_backward: {**CONV, "TOKENS": mamba.FEW_TOKENS},
    mamba.scan_forward: {**SCAN, "HAS_STATE": True, "SAVE": True},
    mamba.scan_backward: {**SCAN, "HAS_DNEXT": True},
    mamba.gate_forward: GATE,
    mamba.gate_backward: {**GATE, "ROWS": ROWS},
    norms.adaln_forward: ADALN,
    norms.adaln_backward: {**ADALN, "HAS_DSUM": True, "ROWS": ROWS},
    norms.heads_forward: HEADS,
    norms.heads_backward: HEADS,
    noise.gumbel_at: {"HAS_AT": True, "UNIFORM": False, "BLOCK": noise.BLOCK},
}
# Pointers to tokens, which have the network's dtype; others are to float32, but for noise's integers.
TOKEN_POINTERS = {
    *["in", "xbc", "y", "out", "before", "dy", "dxbc", "raw", "dkey", "dquery", "dout", "din", "qkv", "dqkv"]
}


def pointer(kernel: str, name: str, tokens: str) -> str:
    """The type of a kernel's argument."""
    if name in ("at", "index", "seed"):
        return "*i64"
    return f"*{tokens}" if name in TOKEN_POINTERS and kernel != "gumbel_at" else "*fp32"


def resources(kernel, constants, tokens, capability):
    options = {"num_warps": constants.get("num_warps", 4)}
    chosen = {name: value for name, value in constants.items() if name != "num_warps"}
    if "Q" in kernel.arg_names:
        chosen["Q"] = 32 if tokens == "bf16" else 16
    types = {}
    for name in kernel.arg_names:
        scalar = "fp32" if name == "eps" else "i32"
        types[name] = "constexpr" if name in chosen else scalar
        if name.endswith("_ptr"):
            types[name] = pointer(kernel.__name__, name.removesuffix("_ptr"), tokens)
    source = ASTSource(kernel, signature=types, constexprs=chosen)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code.asm["cubin"])
        command = [CUOBJDUMP, "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing)}
    return {"shared": code.metadata.shared, "registers": found["REG"], "stack": found["STACK"] + found["LOCAL"]}


if __name__ == "__main__":
    found = {}
    for target in sys.argv[1:]:
        capability, dtypes, *names = target.split(":")
        for kernel, constants in KERNELS.items():
            for tokens in dtypes.split(",") if kernel.__name__ in names or not names else ():
                used = resources(kernel, constants, tokens, int(capability))
                found[f"{capability} {kernel.__name__} {tokens}"] = used
    print(json.dumps(found, indent=1))
