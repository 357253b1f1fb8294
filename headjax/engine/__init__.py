"""What every analysis computes with: prefill, decode steps of edited variants, hits, devices."""
