"""Making task vectors: latent consistency distillation and fine-tuning, and plain diffusion fine-tuning."""
