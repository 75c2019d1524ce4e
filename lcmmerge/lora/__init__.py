"""LoRAs made of what there is: of two checkpoints (extract), of other LoRAs (combine); also the file of one."""
