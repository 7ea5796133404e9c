"""What a verb sets going: the whole job, and what looks at its result again."""
