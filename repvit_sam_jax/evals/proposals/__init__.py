"""What evaluations start from besides their data: other models' boxes, tracks and saliency, read and checked."""
