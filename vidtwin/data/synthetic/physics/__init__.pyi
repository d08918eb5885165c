from vidtwin.data.synthetic.physics.config import PhysicsOptions
from vidtwin.data.synthetic.physics.dataset import PhysicsClip, PhysicsDataset

__all__ = ["PhysicsClip", "PhysicsDataset", "PhysicsOptions"]
