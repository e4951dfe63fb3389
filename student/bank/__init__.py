"""The LoRA bank: K adapters of one frozen student, trained and scored in one batch."""
