"""The views of revision 0003 (see docs/reference/registry-views.md); not edited after release."""


def views(dialect: str) -> dict[str, str]:
    """Return each view's SELECT by its name."""
    main_score = "{0}.delta_id = d.id AND {0}.mode = 'oracle' AND {0}.stream_id IS NULL AND {0}.step = 0 "
    main_score += "AND {0}.metric = t.metric AND {0}.split = '{1}'"
    epochs = "json_extract(d.budget, '$.epochs')" if dialect == "sqlite" else "CAST(d.budget ->> 'epochs' AS INTEGER)"
    return {
        "named_deltas": f"""
            SELECT d.id, t.name || '@' || d.version AS delta, t.name AS task, d.version, t.kind, b.name AS backbone,
                b.fingerprint, d.method, d.status, d.reason, t.metric, test.value AS score,
                validation.value AS validation_score, d.parameters, d.share, d.bytes, d.seconds, d.warm_start,
                d.mlflow_run, d.created_at
            FROM deltas d JOIN tasks t ON t.id = d.task_id JOIN backbones b ON b.id = d.backbone_id
            LEFT JOIN scores test ON {main_score.format("test", "test")}
            LEFT JOIN scores validation ON {main_score.format("validation", "validation")}""",
        "champions": """
            SELECT id, task, backbone, fingerprint, delta, version, method, metric, score, validation_score, created_at
            FROM named_deltas WHERE status = 'champion'""",
        "named_scores": """
            SELECT s.id, t.name || '@' || d.version AS delta, t.name AS task, d.version, d.status, s.split, s.metric,
                s.mode, m.name AS stream, s.step, s.value, s.low, s.high, s.rows
            FROM scores s JOIN deltas d ON d.id = s.delta_id JOIN tasks t ON t.id = s.task_id
            LEFT JOIN streams m ON m.id = s.stream_id""",
        "named_lineage": """
            SELECT l.id, tc.name || '@' || c.version AS delta, tp.name || '@' || p.version AS parent, l.kind,
                l.weight, l.score, tc.name AS task, tp.name AS parent_task
            FROM lineage l JOIN deltas c ON c.id = l.child_id JOIN tasks tc ON tc.id = c.task_id
            JOIN deltas p ON p.id = l.parent_id JOIN tasks tp ON tp.id = p.task_id""",
        "named_events": """
            SELECT e.id, e.created_at AS at, e.what, t.name AS task, t.name || '@' || d.version AS delta, e.reason
            FROM events e JOIN tasks t ON t.id = e.task_id LEFT JOIN deltas d ON d.id = e.delta_id""",
        "named_splits": """
            SELECT s.id, t.name || '@' || d.version AS delta, t.name AS task, s.split, s.fingerprint, s.rows
            FROM splits s JOIN deltas d ON d.id = s.delta_id JOIN tasks t ON t.id = d.task_id""",
        "stream_progress": f"""
            SELECT m.id, m.name AS stream, b.name AS backbone, COUNT(p.id) AS tasks,
                COUNT(CASE p.state WHEN 'learned' THEN 1 END) AS learned,
                COUNT(CASE p.state WHEN 'held' THEN 1 END) AS held,
                COUNT(CASE p.state WHEN 'failed' THEN 1 END) AS failed,
                COALESCE(SUM(CASE WHEN p.attempts > 1 THEN p.attempts - 1 END), 0) AS retries,
                COALESCE(SUM(d.seconds), 0) AS seconds, COALESCE(SUM(s.rows * {epochs}), 0) AS examples,
                COALESCE(SUM(d.bytes), 0) AS bytes, COALESCE(SUM(d.parameters), 0) AS parameters, m.created_at
            FROM streams m JOIN backbones b ON b.id = m.backbone_id LEFT JOIN positions p ON p.stream_id = m.id
            LEFT JOIN deltas d ON d.id = p.delta_id LEFT JOIN splits s ON s.delta_id = d.id AND s.split = 'train'
            GROUP BY m.id, m.name, b.name, m.created_at""",
    }
