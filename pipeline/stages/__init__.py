"""The verbs: each stage a room with its settings, its work and its words; what they share lies in the rooms below."""
