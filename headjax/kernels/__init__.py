"""The kernels under the name they are installed by: `kernels` is also a package of Hugging Face's.

In the source tree they lie beside this package, in `kernels/`; a wheel has them here, in place of this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
