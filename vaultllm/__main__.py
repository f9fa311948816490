"""`python -m vaultllm`: the command line, as `accelerate launch -m vaultllm` needs it."""

from vaultllm.cli import main

if __name__ == "__main__":
    main()
