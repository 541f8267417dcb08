"""Fine-tuning: a trunk becomes a model of classes, masks, depth or boxes, in a folder that transformers opens."""
