"""What stands behind `pipeline.shard`: tables, image sources, checks, the packing plan, the job's folder."""
