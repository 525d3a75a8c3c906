"""What a statement may hold to pass `sql_guard`: kinds of nodes of its tree, functions; and the catalogs of databases.

All lists name what is allowed: what a new version of sqlglot or of a database brings is refused until it is added. The
functions only compute: none writes, waits, locks, reads files or settings, opens connections, or runs a statement
that it is given as text. Left out are also those whose only argument is how much memory to take (`repeat`,
`randomblob`); what a query may cost is the database's to limit.
"""

from __future__ import annotations

__all__ = ["FUNCTIONS", "NODES", "QUERY_FOLLOWS", "QUERY_STARTS", "SELECT_PARTS", "TABLE_PARTS", "in_catalog"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Classes of sqlglot.expressions.
NODES = _names(
    """
    Select Union Except Intersect Subquery With CTE RecursiveWithSearch From Join Where Group Having Qualify
    Order Ordered Limit LimitOptions Offset Fetch Distinct Window WindowSpec Lateral Pivot PivotAlias Version
    Values Tuple Table TableAlias TableSample Alias Aliases Cube Rollup GroupingSets Star Identifier Column Dot
    Paren Var WithinGroup Filter IgnoreNulls RespectNulls

    Literal Null Boolean National HexString BitString ByteString RawString UnicodeString Interval IntervalSpan
    DataType DataTypeParam Cast TryCast JSONCast PropertyEQ Kwarg Struct Slice Bracket Array ToArray

    And Or Xor Not EQ NEQ GT GTE LT LTE Is NullSafeEQ NullSafeNEQ Add Sub Mul Div IntDiv Mod Pow Neg DPipe
    Concat BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitwiseLeftShift BitwiseRightShift Between In Like ILike
    SimilarTo Glob RegexpLike RegexpILike RegexpFullMatch Escape Exists Any All Case If Collate AtTimeZone Match
    MatchAgainst Overlaps ArrayContainsAll ArrayContainedBy ArrayOverlaps Adjacent Distance JSONExtract
    JSONExtractScalar JSONBExtract JSONBExtractScalar JSONBContains JSONBContainsTopKey JSONBContainsAnyTopKeys
    JSONBContainsAllTopKeys JSONKeyValue JSONArrayContains JSONPath JSONPathRoot JSONPathKey JSONPathSubscript
    JSONPathSlice JSONPathWildcard JSONPathRecursive JSONPathUnion
    """
)

# Types of tokens that begin and follow a query in WITH, or a window; "" is the end.
QUERY_STARTS = _names(
    "L_PAREN SELECT WITH VALUES TABLE FROM PARTITION_BY ORDER_BY ROWS ROW RANGE VAR IDENTIFIER R_PAREN"
)
QUERY_FOLLOWS = QUERY_STARTS | {
    "COMMA",
    "ALIAS",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "QUALIFY",
    "LIMIT",
    "OFFSET",
    "",
}

# What a Select and a Table may hold: not hints, locks, INTO, OPTION, FOR XML, partitions or the modifiers of MySQL.
SELECT_PARTS = _names(
    "with expressions from joins where group having qualify order limit offset distinct windows laterals kind sample"
)
TABLE_PARTS = _names("this db catalog alias joins laterals only sample ordinality pivots version")

# Names as sqlglot knows them, whatever the dialect calls them (`now()` is current_timestamp, `ifnull` is coalesce).
_KNOWN = """
    any_value approx_distinct approx_quantiles arg_max arg_min array_agg array_concat_agg avg corr count
    count_if covar_pop covar_samp group_concat j_s_o_n_array_agg j_s_o_n_object_agg j_s_o_n_b_object_agg
    logical_and logical_or max median min mode percentile_cont percentile_disc quantile regr_avgx regr_avgy
    regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp sum
    variance variance_pop bitwise_and_agg bitwise_or_agg bitwise_xor_agg grouping grouping_id

    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number first last

    abs acos asin atan atan2 cbrt ceil cos cot degrees exp factorial floor greatest least ln log pi power
    radians rand round safe_divide sign sin sqrt tan trunc width_bucket is_inf is_nan safe_add safe_subtract
    safe_multiply

    ascii chr coalesce concat concat_ws contains ends_with format hex initcap left length levenshtein lower
    lower_hex md5 md5_digest nullif nvl2 or and overlay pad regexp_count regexp_extract regexp_extract_all
    regexp_instr regexp_replace regexp_split regexp_substr replace reverse right s_h_a1_digest s_h_a2_digest sha
    sha2 soundex space split split_part starts_with str_position string_to_array stuff substring substring_index
    translate trim unhex unicode upper to_base64 from_base64 bit_length byte_length number_to_str to_char
    to_number convert

    array_concat array_contains array_length array_position array_size array_slice array_to_string array_append
    array_prepend array_remove array_reverse array_sum generate_series exploding_generate_series
    generate_date_array generate_timestamp_array unnest explode posexplode

    add_months current_date current_datetime current_time current_timestamp date date_add date_bin date_diff
    date_from_parts date_from_unix_date date_str_to_date date_sub date_to_date_str date_trunc datediff datetime
    datetime_add datetime_diff datetime_sub datetime_trunc day day_of_month day_of_week day_of_year dayname
    dayofweek_iso extract hour last_day localtime localtimestamp make_interval minute month monthname
    months_between next_day previous_day quarter second str_to_date str_to_time str_to_unix time time_add
    time_diff time_from_parts time_str_to_date time_str_to_time time_str_to_unix time_sub time_to_str
    time_to_time_str time_to_unix time_trunc timestamp timestamp_add timestamp_diff timestamp_from_parts
    timestamp_sub timestamp_trunc timestampdiff to_days ts_or_ds_add ts_or_ds_diff ts_or_ds_to_date
    ts_or_ds_to_date_str ts_or_ds_to_datetime ts_or_ds_to_time ts_or_ds_to_timestamp unix_date unix_micros
    unix_millis unix_seconds unix_to_str unix_to_time unix_to_time_str utc_date utc_time utc_timestamp week
    week_of_year year justify_days justify_hours justify_interval parse_datetime parse_time

    j_s_o_n_array j_s_o_n_object json_extract json_extract_array json_extract_scalar json_format json_keys
    json_set json_remove json_array_insert json_strip_nulls json_type j_s_o_n_b_path_exists parse_json
    j_s_o_n_value_array j_s_o_n_exists typeof cast try_cast case if exists int64 float64 string lax_int64
    lax_float64 lax_string lax_bool st_distance st_point farm_fingerprint range_bucket
    """

_POSTGRES = """
    age all any some array_dims array_lower array_ndims array_positions array_replace array_upper bit_and bit_or
    bool_and bool_or btrim cardinality clock_timestamp date_part decode div encode every gcd isempty isfinite
    json_agg json_array_elements json_array_elements_text json_array_length json_build_array json_build_object
    json_each json_each_text json_extract_path json_extract_path_text json_object json_object_agg
    json_object_keys json_typeof jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length
    jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path jsonb_extract_path_text
    jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_query jsonb_path_query_array
    jsonb_path_query_first jsonb_path_exists jsonb_pretty jsonb_set jsonb_strip_nulls jsonb_typeof lcm log10
    lower_inc lpad ltrim make_date make_time make_timestamp make_timestamptz min_scale mod num_nonnulls
    num_nulls numrange int4range int8range tsrange tstzrange daterange octet_length char_length character_length
    phraseto_tsquery plainto_tsquery position quote_ident quote_literal quote_nullable random range_agg
    regexp_like regexp_match regexp_matches regexp_split_to_array regexp_split_to_table row row_to_json rpad
    rtrim scale sha224 sha256 sha384 sha512 statement_timestamp strpos timezone substr to_ascii to_date to_hex
    to_json to_jsonb to_timestamp to_tsquery to_tsvector transaction_timestamp ts_headline ts_rank ts_rank_cd
    unistr upper_inc websearch_to_tsquery
    """
_SQLITE = """
    bm25 char concat fts5_snippet glob highlight iif instr json json_array json_array_length json_each
    json_error_position json_group_array json_group_object json_insert json_object json_patch json_pretty
    json_quote json_replace json_tree json_valid jsonb julianday like likelihood likely log10 log2 ltrim mod
    nullif octet_length pow printf quote rtrim snippet sqrt strftime string_agg substr timediff total unixepoch
    unlikely acosh asinh atanh ceiling cosh sinh tanh
    """
_MYSQL = """
    addtime bin curdate curtime now bit_and bit_count bit_or bit_xor char character_length char_length conv
    crc32 dayofmonth dayofweek dayofyear elt export_set field find_in_set from_days from_unixtime get_format
    ifnull inet_aton inet_ntoa insert instr interval json_contains json_contains_path json_depth json_length
    json_merge_patch json_merge_preserve json_overlaps json_pretty json_quote json_replace json_search
    json_insert json_unquote json_valid json_value locate log10 log2 lpad ltrim makedate maketime microsecond
    mod octet_length ord period_add period_diff pow quote regexp_like rpad rtrim sec_to_time strcmp subdate
    adddate subtime sysdate time_format time_to_sec timediff to_seconds truncate unix_timestamp weekday yearweek
    """
_MSSQL = """
    charindex choose checksum datalength datename datepart datetime2fromparts datetimefromparts difference
    eomonth getdate getutcdate iif isdate isjson isnull isnumeric json_query json_value len log10 ltrim nchar
    parsename patindex quotename rtrim square str string_escape string_split switchoffset sysdatetime
    sysdatetimeoffset sysutcdatetime todatetimeoffset try_convert try_parse parse stdev stdevp var varp
    count_big checksum_agg approx_count_distinct ceiling datetrunc date_bucket
    """
_BIGQUERY = """
    approx_count_distinct approx_top_count approx_top_sum array_first array_last bit_and bit_count bit_or
    bit_xor bool generate_array char_length code_points_to_string format_date format_datetime format_time
    format_timestamp instr json_query json_query_array json_value json_value_array ltrim lpad normalize
    octet_length parse_date parse_timestamp regexp_contains rpad rtrim safe_cast sha1 sha256 sha512 strpos
    substr timestamp_micros timestamp_millis timestamp_seconds to_code_points to_json to_json_string
    date_from_unix_date ieee_divide div mod parse_bignumeric parse_numeric st_geogpoint st_contains st_dwithin
    st_within struct
    """
FUNCTIONS: dict[str, frozenset[str]] = {
    "postgres": _names(_KNOWN + _POSTGRES),
    "sqlite": _names(_KNOWN + _SQLITE),
    "mysql": _names(_KNOWN + _MYSQL),
    "mssql": _names(_KNOWN + _MSSQL),
    "bigquery": _names(_KNOWN + _BIGQUERY),
}

_MYSQL_CATALOGS = _names("information_schema mysql ndbinfo performance_schema sys")
_MSSQL_CATALOGS = _names("information_schema master model msdb sys tempdb")
# The views of old that need no schema.
_MSSQL_VIEWS = _names(
    """
    sysaltfiles syscacheobjects syscharsets syscolumns syscomments sysconfigures sysconstraints syscurconfigs
    sysdatabases sysdepends sysdevices sysfilegroups sysfiles sysforeignkeys sysfulltextcatalogs sysindexes
    sysindexkeys syslanguages syslockinfo syslogins sysmembers sysmessages sysobjects sysoledbusers sysopentapes
    sysperfinfo syspermissions sysprocesses sysprotects sysreferences sysremotelogins syssegments sysservers
    systypes sysusers
    """
)
_SQLITE_TABLES = _names(
    "bytecode completion dbstat fsdir tables_used zipfile"
)  # virtual tables that need no CREATE


def in_catalog(parts: tuple[str, ...], dialect: str) -> bool:
    """Whether a table belongs to the database system itself, which tells of other users, settings and statistics."""
    names = [part.lower() for part in parts]
    match dialect:
        case "postgres":
            return any(name.startswith("pg_") or name == "information_schema" for name in names)
        case "sqlite":
            return names[-1] in _SQLITE_TABLES or names[-1].startswith(("sqlite_", "pragma_"))
        case "mysql":
            return any(name in _MYSQL_CATALOGS for name in names[:-1])
        case "mssql":
            return any(name in _MSSQL_CATALOGS for name in names[:-1]) or names[-1] in _MSSQL_VIEWS
        case _:
            words = [word for name in names for word in name.split(".")]
            return any(word in ("information_schema", "__tables__", "__tables_summary__") for word in words)
