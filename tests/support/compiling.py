"""How XLA compiles for tests. Imports no jax, which reads this when it is imported."""

import importlib.metadata

# Hundreds of tiny programs run once: compiling them with all of LLVM's passes, and
# fusions by way of MLIR, would take most of the time. As `compiler_options` of one
# program, and for a process:
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end of it
    QUICKLY["xla_cpu_use_fusion_emitters"] = False


def quickly(environment: dict[str, str]) -> dict[str, str]:
    """The variables, and those of a process of which only what it does is looked at.

    With the oracles this process compiles as users do (launch/test.sh); of a command
    that must end well, or of hosts that must agree, that shows nothing more.
    """
    flags = [f"--{name}={str(value).lower()}" for name, value in QUICKLY.items()]
    given = environment.get("XLA_FLAGS", "").split()
    return {**environment, "XLA_FLAGS": " ".join(dict.fromkeys([*given, *flags]))}
