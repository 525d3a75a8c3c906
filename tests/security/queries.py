"""Queries that must pass and run, and the tables that they read."""

from __future__ import annotations

__all__ = ["ANALYTIC", "OTHER_DIALECTS", "SCHEMA"]

# Both Postgres and SQLite understand it.
SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, country TEXT, joined DATE);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, total NUMERIC, placed DATE, state TEXT);
CREATE TABLE items (id INTEGER PRIMARY KEY, "order" INTEGER, product TEXT, amount INTEGER, price NUMERIC);
CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, boss INTEGER);
CREATE TABLE vault (name TEXT, secret TEXT);
INSERT INTO customers VALUES (1, 'Ada', 'GB', '2024-01-05'),
    (2, 'O''Brien', 'IE', '2024-02-07'), (3, 'Zoë', 'FR', '2025-03-01');
INSERT INTO orders VALUES (1, 1, 20.5, '2025-01-02', 'paid'), (2, 1, 7, '2025-02-03', 'open'),
    (3, 2, 99.9, '2025-02-04', 'paid'),
    (4, 3, NULL, '2025-03-05', 'void');
INSERT INTO items VALUES (1, 1, 'tea', 2, 5.25), (2, 1, 'cup', 1, 10), (3, 2, 'tea', 1, 7), (4, 3, 'kettle', 1, 99.9);
INSERT INTO staff VALUES (1, 'Root', NULL), (2, 'Mid', 1), (3, 'Leaf', 2);
INSERT INTO vault VALUES ('key', 'hush');
"""

# Understood by Postgres and SQLite alike.
ANALYTIC = [
    "SELECT 1",
    "SELECT * FROM orders",
    "SELECT * FROM orders;",
    "select name from customers where country = 'IE'",
    "SELECT name FROM customers WHERE name = 'O''Brien'",
    "SELECT count(*), sum(total), avg(total), min(total), max(total) FROM orders",
    "SELECT count(DISTINCT customer) FROM orders",
    "SELECT state, count(*) AS n FROM orders GROUP BY state HAVING count(*) >= 1 ORDER BY n DESC, state",
    "SELECT c.name, o.total FROM customers AS c JOIN orders AS o ON o.customer = c.id ORDER BY o.id",
    "SELECT c.name, o.total FROM customers c LEFT JOIN orders o ON o.customer = c.id AND o.id < 3 ORDER BY 1, 2",
    "SELECT c.name FROM customers c, orders o WHERE c.id = o.customer AND o.total > 10 ORDER BY c.name",
    "SELECT c.name FROM customers c CROSS JOIN staff s WHERE s.id = 1 ORDER BY c.name",
    "SELECT a.name, b.name FROM staff a LEFT JOIN staff b ON a.boss = b.id ORDER BY a.id",
    "SELECT * FROM customers WHERE id IN (SELECT customer FROM orders WHERE total > 50)",
    "SELECT * FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.customer = c.id)",
    "SELECT * FROM customers WHERE NOT id IN (1, 2)",
    "SELECT name, (SELECT count(*) FROM orders o WHERE o.customer = c.id) AS n FROM customers c ORDER BY n DESC, name",
    "SELECT coalesce(total, 0) FROM orders ORDER BY id",
    "SELECT nullif(state, 'void') FROM orders ORDER BY id",
    "SELECT CASE WHEN total > 50 THEN 'big' WHEN total IS NULL THEN 'none' ELSE 'small' END FROM orders ORDER BY id",
    "SELECT upper(name), lower(name), length(name) FROM customers ORDER BY id",
    "SELECT substr(name, 1, 2) FROM customers ORDER BY id",
    "SELECT trim(name), ltrim(name), rtrim(name) FROM customers ORDER BY id",
    "SELECT replace(name, 'a', 'b') FROM customers ORDER BY id",
    "SELECT name || ' (' || country || ')' FROM customers ORDER BY id",
    "SELECT round(total, 1), abs(total) FROM orders WHERE total IS NOT NULL ORDER BY id",
    "SELECT total * 2 + 1 - 3 / 4 FROM orders ORDER BY id",
    "SELECT id % 2, count(*) FROM orders GROUP BY id % 2 ORDER BY 1",
    "SELECT -id FROM orders ORDER BY id",
    "SELECT id FROM orders WHERE total BETWEEN 5 AND 50 ORDER BY id",
    "SELECT id FROM orders WHERE state LIKE 'p%' OR state = 'open' ORDER BY id",
    "SELECT id FROM orders WHERE NOT (state = 'paid' AND total > 50) ORDER BY id",
    "SELECT id FROM orders WHERE total IS NULL",
    "SELECT id FROM orders ORDER BY total DESC NULLS LAST",
    "SELECT id FROM orders ORDER BY id LIMIT 2 OFFSET 1",
    "SELECT DISTINCT country FROM customers ORDER BY country",
    "SELECT country FROM customers UNION SELECT state FROM orders ORDER BY 1",
    "SELECT id FROM customers UNION ALL SELECT id FROM orders ORDER BY 1",
    "SELECT id FROM orders INTERSECT SELECT id FROM customers ORDER BY 1",
    "SELECT id FROM orders EXCEPT SELECT id FROM customers",
    "WITH paid AS (SELECT * FROM orders WHERE state = 'paid') SELECT count(*) FROM paid",
    "WITH a AS (SELECT 1 AS x), b AS (SELECT x + 1 AS y FROM a) SELECT * FROM a, b",
    "WITH a(x, y) AS (SELECT id, total FROM orders) SELECT sum(y) FROM a WHERE x > 1",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
    """WITH RECURSIVE up(id, name, level) AS (
        SELECT id, name, 0 FROM staff WHERE boss IS NULL
        UNION ALL SELECT s.id, s.name, up.level + 1 FROM staff s JOIN up ON s.boss = up.id
    ) SELECT name, level FROM up ORDER BY level""",
    "SELECT id, row_number() OVER (ORDER BY total DESC NULLS LAST) FROM orders ORDER BY id",
    "SELECT id, rank() OVER (PARTITION BY state ORDER BY id) FROM orders ORDER BY id",
    "SELECT id, sum(total) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM orders ORDER BY id",
    "SELECT id, lag(total) OVER (ORDER BY id), lead(total, 1) OVER (ORDER BY id) FROM orders ORDER BY id",
    "SELECT id, avg(total) OVER w FROM orders WINDOW w AS (ORDER BY id ROWS 1 PRECEDING) ORDER BY id",
    "SELECT ntile(2) OVER (ORDER BY id), first_value(id) OVER (ORDER BY id) FROM orders ORDER BY id",
    "SELECT count(*) FILTER (WHERE state = 'paid') FROM orders",
    "SELECT product, sum(amount * price) AS revenue FROM items GROUP BY product ORDER BY revenue DESC LIMIT 3",
    'SELECT "order", count(*) FROM items GROUP BY "order" ORDER BY "order"',
    'SELECT o.id AS "number of order" FROM orders AS o ORDER BY "number of order"',
    "SELECT * FROM (SELECT id, total FROM orders WHERE total > 5) AS t WHERE t.id < 3 ORDER BY t.id",
    "SELECT o.* FROM orders o WHERE o.id = (SELECT max(id) FROM orders)",
    "SELECT CAST(total AS INTEGER) FROM orders WHERE total = 7",
    "SELECT CAST(id AS TEXT) FROM orders ORDER BY id",
    "SELECT name FROM customers WHERE joined >= '2024-02-01' ORDER BY name",
    "SELECT max(placed), min(placed) FROM orders",
    "SELECT 'DROP TABLE orders; --' AS text",
    "SELECT 'it''s; 50% off /* not a comment */ -- nor this'",
    "SELECT 1 -- the number\n",
    "SELECT /* all of them */ id FROM orders ORDER BY id",
    """SELECT c.country, count(o.id) FROM customers c
    JOIN orders o ON o.customer = c.id JOIN items i ON i."order" = o.id
    WHERE i.product <> 'cup' GROUP BY c.country ORDER BY 2 DESC, 1""",
    "SELECT NULL, 1.5, 1e3, 'text', TRUE",
    "SELECT * FROM orders WHERE (id, customer) IN (SELECT id, customer FROM orders WHERE state = 'paid') ORDER BY id",
    "SELECT (SELECT name FROM customers WHERE id = 3)",
    "SELECT id FROM orders WHERE state = 'paid' AND (total > 1 OR customer = 2) AND id < 100 ORDER BY id DESC",
]

# Passes for one dialect.
OTHER_DIALECTS = {
    "postgres": [
        "SELECT date_trunc('month', placed)::date AS month, sum(total) FROM orders GROUP BY 1 ORDER BY 1",
        "SELECT extract(year FROM placed), to_char(placed, 'YYYY-MM') FROM orders ORDER BY id",
        "SELECT string_agg(name, ', ' ORDER BY name) FROM customers",
        "SELECT array_agg(id ORDER BY id) FROM orders",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total) FROM orders",
        "SELECT d::date FROM generate_series('2025-01-01'::timestamp, '2025-01-03', interval '1 day') AS d",
        "SELECT json_build_object('name', name) ->> 'name' FROM customers ORDER BY id",
        "SELECT jsonb_agg(name) FROM customers",
        "SELECT name FROM customers WHERE name ILIKE 'a%' OR name ~ '^Z'",
        "SELECT DISTINCT ON (customer) customer, total FROM orders ORDER BY customer, placed DESC",
        """SELECT c.name, x.total FROM customers c
        CROSS JOIN LATERAL (SELECT total FROM orders o WHERE o.customer = c.id ORDER BY id LIMIT 1) AS x ORDER BY 1""",
        "SELECT state, count(*) FROM orders GROUP BY ROLLUP (state) ORDER BY 1",
        "SELECT now() - interval '7 days', current_date, age(timestamp '2025-01-01', timestamp '2024-01-01')",
        "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS t(id, label)",
        "SELECT id FROM orders WHERE id = ANY(ARRAY[1, 2]) ORDER BY id FETCH FIRST 1 ROWS ONLY",
        "SELECT regexp_replace(name, '[aeiou]', '*', 'g'), split_part(name, 'r', 1) FROM customers ORDER BY id",
        "SELECT E'tab\\there', $$it's$$, $q$a;b$q$",
        "SELECT count(*) FROM orders TABLESAMPLE BERNOULLI (100)",
        "SELECT round(stddev(total), 2), corr(id, total) FROM orders",
        "SELECT unnest(ARRAY[1, 2]) AS n",
        "SELECT id FROM orders WHERE id <> ALL(ARRAY[1, 2]) ORDER BY id",
        "SELECT timezone('UTC', timestamp '2025-01-01 10:00'), placed + interval '1 year 2 months' FROM orders",
        "SELECT '[1,3)'::int4range -|- '[3,4)'::int4range, '{\"a\": 1}'::jsonb @> '{\"a\": 1}', 2 ^ 10, |/ 25.0, 5 # 3",
        "SELECT count(*) OVER (), nth_value(id, 2) OVER w, percent_rank() OVER w FROM orders WINDOW w AS (ORDER BY id)",
        "SELECT substring(name FROM 1 FOR 2), position('a' IN name), overlay(name PLACING 'x' FROM 1) FROM customers",
        "SELECT (DATE '2025-01-01', DATE '2025-02-01') OVERLAPS (DATE '2025-01-15', DATE '2025-03-01')",
    ],
    "sqlite": [
        "SELECT strftime('%Y-%m', placed) AS month, sum(total) FROM orders GROUP BY month ORDER BY month",
        "SELECT date(placed, '+1 day'), julianday(placed) FROM orders ORDER BY id",
        "SELECT group_concat(name, '; ') FROM customers",
        "SELECT json_extract('{\"a\": [1, 2]}', '$.a[1]')",
        "SELECT value FROM json_each('[1, 2, 3]')",
        "SELECT iif(total > 10, 'big', 'small') FROM orders ORDER BY id",
        "SELECT printf('%.2f', total), instr(state, 'a'), typeof(total) FROM orders ORDER BY id",
        "SELECT name FROM customers WHERE name GLOB 'A*'",
        "SELECT [name] FROM customers ORDER BY `name`",
    ],
    "mysql": [
        "SELECT date_format(placed, '%Y-%m') AS m, sum(total) FROM orders GROUP BY m ORDER BY m",
        "SELECT group_concat(name ORDER BY name SEPARATOR ', ') FROM customers",
        "SELECT ifnull(total, 0), if(total > 1, 'a', 'b') FROM `orders` LIMIT 5, 10",
        "SELECT 'it\\'s' # a comment",
        "SELECT datediff(now(), placed), timestampdiff(MONTH, placed, curdate()), year(placed) FROM orders",
        "SELECT name FROM customers WHERE name REGEXP 'x' AND MATCH(name) AGAINST ('y' IN BOOLEAN MODE)",
    ],
    "mssql": [
        "SELECT TOP 5 [name], len(name) FROM dbo.customers ORDER BY name",
        "SELECT dateadd(day, 1, placed), isnull(total, 0) FROM shop.dbo.orders",
        "SELECT id FROM orders ORDER BY id OFFSET 5 ROWS FETCH NEXT 5 ROWS ONLY",
        "SELECT * FROM orders PIVOT (sum(total) FOR state IN ([paid], [open])) AS p",
        "SELECT a.id FROM orders AS a CROSS APPLY (SELECT TOP 1 * FROM items AS i WHERE i.id = a.id) AS b",
        "WITH n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT sum(i) FROM n",
    ],
    "bigquery": [
        "SELECT format_date('%Y-%m', placed), countif(total > 1) FROM `p-x.shop.orders` GROUP BY 1",
        "SELECT x FROM shop.orders, UNNEST([1, 2]) AS x",
        "SELECT safe_divide(a, b), any_value(c) FROM shop.orders QUALIFY row_number() OVER (ORDER BY a) = 1",
        "SELECT * EXCEPT (secret) FROM shop.customers",
        "SELECT * FROM shop.orders FOR SYSTEM_TIME AS OF timestamp_sub(current_timestamp(), INTERVAL 1 HOUR)",
        "SELECT array_agg(a IGNORE NULLS ORDER BY b LIMIT 5) FROM shop.orders TABLESAMPLE SYSTEM (10 PERCENT)",
    ],
}
