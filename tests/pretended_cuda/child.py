"""The process with the pretended device: reads the name of a case a line, answers with one line of JSON.

    python -m pretended_cuda.child LIBRARY
"""

import json
import sys
from pathlib import Path

from pretended_cuda import guard


def main() -> None:
    """Answer until the input ends."""
    guard.load(Path(sys.argv[1]))
    import torch

    torch.set_num_threads(1)
    from pretended_cuda import parts

    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write to the answers
    for line in sys.stdin:
        print(json.dumps(parts.run(line.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()
