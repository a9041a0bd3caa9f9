"""Faults to plant, one at a time: where, what a user would suffer, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass

# ruff: noqa: E501


@dataclass(frozen=True, slots=True)
class Mutant:
    """`text` is in `file` once, and becomes `replacement`. `tests`: arguments of pytest."""

    file: str
    text: str
    replacement: str
    suffers: str
    tests: tuple[str, ...]


def _of(file: str, tests: str, *faults: tuple[str, str, str]) -> tuple[Mutant, ...]:
    """Faults of one file: (what a user would suffer, text, replacement)."""
    return tuple(
        Mutant(file, text, replacement, suffers, tuple(tests.split())) for suffers, text, replacement in faults
    )


_ENGINE = "tests/mlx_backend/engine/test_device_failures.py tests/mlx_backend/engine/test_engine.py"
_SCHEDULER = "tests/mlx_backend/engine/test_scheduler.py"
_PREEMPTION = "tests/mlx_backend/engine/test_preemption.py tests/mlx_backend/engine/test_preempted_answers.py"
_WAITING = "tests/mlx_backend/engine/test_waiting.py"
_KEYS = "tests/server/security/test_keys.py"
_GATE = "tests/server/security"
_RESIDENCY = "tests/server/service/test_residency.py"
_GENERATION = (
    "tests/server/service/test_generation.py tests/server/dialects/test_room.py tests/server/security/test_gate.py"
)

MUTANTS: tuple[Mutant, ...] = (
    # --- several ranks
    *_of(
        "mlx_backend/ranks/channel.py",
        "tests/mlx_backend/ranks/test_channel.py",
        (
            "whoever is on the way repeats a call",
            "        self._num_received += 1\n",
            "",
        ),
        (
            "whoever is on the way changes a call",
            "        if not hmac.compare_digest(tag, _tag(self._receive_key, _NUMBER.pack(self._num_received), head, payload)):",
            "        if False:",
        ),
        (
            "whatever connects takes the memory that it announces",
            "        if length > MAX_FRAME_BYTES:\n            raise NotAuthenticated",
            "        if False:\n            raise NotAuthenticated",
        ),
        (
            "a call is sent back to the rank that made it",
            'return _tag(key, b"from accepting", own + theirs), _tag(key, b"from connecting", own + theirs)',
            'return _tag(key, b"from accepting", own + theirs), _tag(key, b"from accepting", own + theirs)',
        ),
        (
            "a process without the key takes the place of rank 0",
            '    _check_tag(sock, key, b"accepts", theirs + own, deadline)\n',
            "    _read(sock, _TAG_BYTES, deadline)\n",
        ),
    ),
    *_of(
        "mlx_backend/ranks/follower.py",
        "tests/mlx_backend/ranks/test_follower.py",
        (
            "a rank stays behind in a computation when rank 0 has died",
            '            self._leave(f"is lost: {error}")',
            "            pass",
        ),
        (
            "a rank that holds more and more is shown as it was when it had loaded",
            '                self._inbox.put({"call": "note"})',
            "                pass",
        ),
        (
            "a rank restores another block than rank 0 does",
            '        if tuple(ref.id for ref in refs) != message["ids"]:',
            "        if False:",
        ),
    ),
    *_of(
        "mlx_backend/ranks/peer.py",
        "tests/mlx_backend/ranks/test_follower.py",
        (
            "the death of a rank is not noticed, and clients wait for ever",
            '            self._lost(f"is lost: {error}")',
            "            pass",
        ),
        (
            "a rank that hangs is not noticed",
            "            if why is not None:\n                self._lost(why)",
            "            if False:\n                self._lost(why)",
        ),
    ),
    *_of(
        "mlx_backend/ranks/facts.py",
        "tests/mlx_backend/ranks/test_facts.py",
        (
            "a context is promised that another rank has no room for",
            "    context = min(each[\"context\"] for each in ranks)",
            "    context = info.context_limit",
        ),
        (
            "the memory that is shown is that of the rank with the most room",
            "    return min(reports, key=",
            "    return max(reports, key=",
        ),
        (
            "a rank that found otherwise computes along, and hangs",
            "if theirs.get(name) != ours[name]]",
            "if False]",
        ),
    ),
    *_of(
        "mlx_backend/ranks/store.py",
        "tests/mlx_backend/ranks/test_store.py",
        (
            "what is kept of prompts takes more than there is on the fullest rank",
            "max(ref.nbytes, self._most_bytes(span))",
            "ref.nbytes",
        ),
    ),
    *_of(
        "mlx_backend/runners/rank.py",
        "tests/mlx_backend/ranks/test_rank_equality.py",
        (
            "ranks of a pipeline order their rows differently, and clients get the words of others",
            "if self._whole else super()._row_sizes()",
            "if False else super()._row_sizes()",
        ),
    ),
    *_of(
        "mlx_backend/engine/engine.py",
        "tests/mlx_backend/ranks/test_abandoned_engine.py",
        (
            "clients wait for ever for a device thread that hangs",
            "        self._thread.join(_LEAVE_S)  # it may be free to end by itself\n        self._fail_everything()",
            "        self._thread.join(_LEAVE_S)  # it may be free to end by itself",
        ),
        (
            "a server whose device thread hangs takes ten seconds more to end",
            "            if not self._is_abandoned:\n                self._thread.join(timeout_s)",
            "            self._thread.join(timeout_s)",
        ),
    ),
    *_of(
        "mlx_backend/model/sharding.py",
        "tests/mlx_backend/model/test_sharding.py",
        (
            "heads that cannot be divided are cut, and answers are garbage",
            "        if isinstance(number, int) and number % count:",
            "        if False:",
        ),
    ),
    *_of(
        "mlx_backend/sampling/shared.py",
        "tests/mlx_backend/ranks/test_rank_equality.py",
        (
            "ranks go on from different tokens",
            "        return replace(drawn, tokens=mx.distributed.all_sum(drawn.tokens.astype(mx.int32), group=self._group))",
            "        return replace(drawn, tokens=mx.distributed.all_sum(drawn.tokens.astype(mx.int32) * 2, group=self._group) // 3)",
        ),
    ),
    # --- the engine and its device
    *_of(
        "mlx_backend/engine/loop.py",
        _ENGINE,
        ("three failures in a year end the server", "        self._failures_in_a_row = 0\n        self._succeeded(now)", "        self._succeeded(now)"),
        ("answers skip tokens after memory ran out", "            started = None  # was built on what is lost", "            pass"),
        ("answers skip tokens after memory ran out", "            self._ran_out = error\n            return False", "            self._ran_out = error\n            return True"),
        ("answers that are being written wait for ever when the engine dies", "        for stream in {*self._streams.values(), *arrived}:", "        for stream in set(arrived):"),
        ("prompts stall running streams: the pace is taken for slower", "        self._collected_at = None  # the time to the next", "        pass  # the time to the next"),
        ("who is out of memory is told nothing", "            self._fail(error, largest(running))", "            pass"),
        ("everybody fails where memory runs out", "            self.scheduler.recompute()", "            self._fail(error, running)"),
        ("a large request ends the server", "        if isinstance(error, OutOfMemory | GrammarFailed):", "        if False:"),
        ("a device that always fails is never given up", "        if self._failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:", "        if False:"),
        ("an answer goes on behind its stop token", "        if token_id in request.stop_ids:", "        if False:"),
        ("an answer is one token too long", "        elif len(sequence.output_ids) >= request.max_tokens:", "        elif len(sequence.output_ids) > request.max_tokens:"),
    ),
    *_of(
        "mlx_backend/engine/loop.py",
        "tests/mlx_backend/engine/test_loop.py",
        ("a token waits for the chunks of two steps", "(was_idle or plan.new_rows)", "plan.new_rows"),
        ("a first token waits for another prompt's chunk", "(was_idle or plan.new_rows)", "was_idle"),
    ),
    *_of(
        "mlx_backend/engine/loop.py",
        "tests/mlx_backend/runners/test_mlx.py",
        ("rows stay in memory while nothing runs", "            self._rows = ()\n            self._runner.idle()\n", ""),
    ),
    *_of(
        "mlx_backend/engine/engine.py",
        _ENGINE,
        ("requests that had just come wait for ever when the engine dies", "            arrived = [stream for _, stream in self._inbox]\n", "            arrived = list[EventStream]()\n"),
        ("a request waits for ever that came as the engine died", "        with self._changed:\n            if self._failure is not None or self._closing:\n                raise self._dead()\n            if not", "        with self._changed:\n            if not"),
        ("a server that was idle for an hour says that it is stalled", "            self._counters.progress_at = time.monotonic()\n            self._busy = True", "            self._busy = True"),
        ("a server without work says that it is stalled", "            self._busy = False\n", ""),
        ("the queue takes any number", "            if not self._has_room(groups):", "            if False:"),
        ("a stalled device is never told", "        if self._busy and waited_s > self._config.health.stall_s:", "        if False:"),
        ("nobody is told that the engine died", "            for callback in self._callbacks:\n                callback()", "            pass"),
        ("a request that is given up is computed to its end", "            loop.close_sequence(sequence, how)", "            pass"),
    ),
    # --- who computes what
    *_of(
        "mlx_backend/engine/scheduler.py",
        _SCHEDULER,
        ("after memory ran out the last come first", "            sequence = self.running[-1]\n", "            sequence = self.running[0]\n"),
        ("a first token waits four stalls", "                budget_s = left_s = min(left_s, stall_s)  # from", "                pass  # from"),
        ("answers repeat a token after memory ran out", "            sequence.num_started_tokens = len(sequence.output_ids)\n", ""),
        ("more rows than there are", "(promised + num_rows > self._max_rows or", "(promised > self._max_rows or"),
        ("a batch is never full", "(promised + num_rows > self._max_rows or", "(promised + num_rows >= self._max_rows or"),
        ("a request that is too large for all others is never let in", "            if promised and (promised", "            if (promised"),
        ("a chunk stalls running streams", "self._chunks(stalls=bool(self.running))", "self._chunks(stalls=False)"),
        ("a short prompt waits for a long one", "        if self._num_steps % 2 or len(self.prefilling) < 2:", "        if True:"),
        ("a long prompt starves", "        if self._num_steps % 2 or len(self.prefilling) < 2:", "        if len(self.prefilling) < 2:"),
        ("memory is promised twice", "        return [reserve_expected(group, self.lengths) for group in self._admitted.values()]", "        return [reserve_expected(group, self.lengths) for group in list(self._admitted.values())[:-1]]"),
        ("memory is never given back", "            self._admitted.pop(group.id, None)", "            pass"),
        ("two prompts are planned before one is measured", "                return  # measure one chunk before planning a second", "                token_s = 0.0"),
        ("a prompt that waits for the disk holds up all others", "                continue\n            if match.key is not None:", "                return\n            if match.key is not None:"),
        ("the same prompt is computed twice at once", "                planned.add(match.key)", "                pass"),
        ("what is known is computed again", "        if match.restorable_until > start and self._prefixes is not None:", "        if False:"),
        ("a chunk goes past the place of a snapshot", "min(stop, match.stop_at or stop)", "stop"),
    ),
    # --- who leaves where memory runs short
    *_of(
        "mlx_backend/engine/scheduler.py",
        _PREEMPTION,
        ("an answer skips a token when it comes back in the step in which it left", "        if not self._is_full:  #", "        if True:  #"),
        ("a row that left stays in memory", "                if self._rows.pop(sequence.id, None) is not None:\n                    self._ended.append(sequence.id)", "                self._rows.pop(sequence.id, None)"),
        ("memory runs out before room is made", "        leaving, staying = choose_leaving(list(self._admitted.values()), self._budget.admits)", "        leaving, staying = choose_leaving(list(self._admitted.values()), lambda claims: True)"),
        ("what is kept of rows that leave takes memory that is not there", "max(held_bytes + computing, self._budget.needed(staying))", "self._budget.needed(staying)"),
        ("tokens that are computed again are not counted", "            self.num_recomputed_tokens += chunk.num_tokens - num_new", "            pass"),
    ),
    *_of(
        "mlx_backend/engine/reservations.py",
        _PREEMPTION,
        ("the oldest leave first", "        group, alive = staying.pop()\n        claims.pop()", "        group, alive = staying.pop(0)\n        claims.pop(0)"),
        ("the same request leaves again and again", "    factor = 1 << min(group.num_preemptions, _MOST_DOUBLINGS)", "    factor = 1"),
        ("all continuations leave where one would do", "or alive[-1:]", "or alive"),
    ),
    *_of(
        "mlx_backend/engine/expected_length.py",
        "tests/mlx_backend/engine/test_expected_length.py",
        ("a long answer is expected to be over", "        first = bisect_right(self._in_order, num_written)", "        first = 0"),
        ("a year's answers are all remembered", "        if len(self._by_age) >= _MOST_KEPT:", "        if False:"),
        ("answers of one word speak for all", "    return max_tokens.bit_length() // _BITS_PER_KIND", "    return 0"),
    ),
    *_of(
        "mlx_backend/engine/loop.py",
        _PREEMPTION,
        ("nothing is learned from answers that finish", '        if how == "finished":\n            self.scheduler', '        if False:\n            self.scheduler'),
        ("what leaves is computed again though there is room to keep it", "        self._prefixes.fit(free_bytes)\n", "        self._prefixes.fit(0)\n"),
    ),
    *_of(
        "mlx_backend/core/sequence.py",
        _PREEMPTION,
        ("a prompt's logprobs are told twice", "        self.num_computed_tokens = 0\n        self.logprobs = []", "        self.num_computed_tokens = 0"),
        ("tokens of one's own prompt count as cached", "max(chunk.start, self.num_lost_tokens)", "chunk.start"),
    ),
    *_of(
        "mlx_backend/engine/waiting.py",
        _WAITING,
        ("a tenant whose only prompt was given up takes a turn", "        queue.remove(group)\n        if not queue:\n            del self._of[group.request.tenant]", "        queue.remove(group)"),
        ("a tenant takes one place too many", "num_own + len(coming) <= max(num_free - len(coming), 1)", "num_own + len(coming) <= max(num_free - len(coming), 1) + 1"),
        ("a tenant alone cannot wait at all", "max(num_free - len(coming), 1)", "num_free - len(coming)"),
        ("who asks much goes first, always", "        queue = self._of.pop(group.request.tenant)\n        queue.popleft()", "        queue = self._of[group.request.tenant]\n        queue.popleft()"),
        ("those who lost their rows wait behind all", "        self._front.appendleft(group)", "        self._front.append(group)"),
    ),
    # --- security
    *_of(
        "server/security/keys.py",
        _KEYS,
        ("revoking bob revokes bobby", 'line.strip().partition(":")[0] != name', 'not line.strip().startswith(name)'),
        ("a keys file that is a link becomes a file of its own", "    target = path.resolve()\n", "    target = path\n"),
        ("a half-written keys file locks everybody out", "            os.fsync(file.fileno())\n        os.replace(file.name, target)", "            os.fsync(file.fileno())\n        target.write_text(Path(file.name).read_text())"),
    ),
    *_of(
        "server/security/gate.py",
        _GATE,
        ("a 429 does not say when to come again", "                more.add(account.headers)\n                account.admit()", "                account.admit()\n                more.add(account.headers)"),
        ("a new limit of bodies has no effect until a restart", "        self._bodies.most = limits.max_bodies_bytes\n", ""),
        ("any key loads and unloads models", "            raise AdminRefused", "            pass"),
        ("a page of any site uses the server", "            raise OriginRefused(origin)", "            pass"),
        ("DNS rebinding gets through", "            raise HostRefused(hosts[0])", "            pass"),
        ("a request of two hosts is let in", "        if len(hosts) != 1:", "        if not hosts:"),
        ("any key is as good as another", "        if key is None:\n            raise KeyRefused(\"The API key is not known here.\")", "        if key is None:\n            pass"),
        ("the operators' pages are open to every app", "not scope[\"path\"].startswith(_OPERATORS)", "True"),
    ),
    *_of(
        "server/error_bodies.py",
        "tests/server/test_error_answers.py",
        ("an API's clients get another one's errors", 'if path == prefix or path.startswith(f"{prefix}/"):', "if path == prefix:"),
        ("a part of an API has the errors of the whole", "reverse=True", "reverse=False"),
    ),
    *_of(
        "server/security/connection.py",
        "tests/server/test_error_answers.py",
        ("an API's clients cannot read why a connection is refused", "_path_of(self.url)", '""'),
    ),
    *_of(
        "server/security/hosts.py",
        _GATE,
        ("apps on the own machine cannot use the API", "        return scheme in _APP_SCHEMES", "        return False"),
        ("a site that is called localhost.evil gets in", "            return name in _LOCAL_NAMES or _is_loopback_ip(name)", "            return name.startswith(\"localhost\") or _is_loopback_ip(name)"),
        ("a server on the network is open to every extension", "        self._opens_local = config.security.local_origins and is_guarded", "        self._opens_local = config.security.local_origins"),
        ("`security.local_origins: false` has no effect", "        self._opens_local = config.security.local_origins and is_guarded", "        self._opens_local = is_guarded"),
    ),
    *_of(
        "server/dialects/openai_embeddings/routes.py",
        "tests/server/dialects/openai_embeddings tests/server/security/test_gate.py",
        ("a key's limits do not hold for embeddings", "        job = replace(job, tenant=request.state.tenant)\n", ""),
    ),
    # --- jobs and models
    *_of(
        "server/service/generation.py",
        _GENERATION,
        ("a model cannot be unloaded after a client left early", "    except BaseException:\n        lease.release()\n        raise\n    stream.lease", "    except Exception:\n        lease.release()\n        raise\n    stream.lease"),
        ("a small context is all for the answer", "    least = min(_LEAST_ROOM, limit // 4)", "    least = _LEAST_ROOM"),
        ("max_tokens above the room is refused", "if job.fits_max_tokens and room > 0 else job.max_tokens", "if False else job.max_tokens"),
        ("a client is not told that its answer is shortened", "least if job.max_tokens is not None and least < job.max_tokens else None", "None"),
        ("more log-probabilities than an answer can have", "    if number > MOST_LOGPROBS:", "    if False:"),
        ("tokens are counted once for n choices", "len(request.prompt_ids) + job.n * int(", "len(request.prompt_ids) + int("),
    ),
    *_of(
        "server/service/residency.py",
        _RESIDENCY,
        ("a model stays loaded for a client that has left", "            if load.is_handed:\n                self._release(model)\n            else:", "            if not load.is_handed:"),
        ("a model in use goes before one that nobody uses", "key=lambda other: (other.num_users > 0, other.used_at)", "key=lambda other: other.used_at"),
        ("the newest model goes first", "key=lambda other: (other.num_users > 0, other.used_at)", "key=lambda other: (other.num_users > 0, -other.used_at)"),
        ("a pinned model is unloaded", "and not o.is_pinned]", "]"),
    ),
    *_of(
        "server/service/registry.py",
        "tests/server/service/test_registry.py tests/server/service/test_residency.py",
        ("an old failure is told of a model that is well", "        self.share, self.last_failure = share, None\n", "        self.share = share\n"),
    ),
    # --- memory
    *_of(
        "mlx_backend/planning/admission.py",
        "tests/mlx_backend/planning/test_admission.py",
        ("a long prompt's chunk runs out of memory", "        return max(needed, held + largest)", "        return needed"),
        ("small chunks where large ones fit", "        while step > SMALLEST_STEP and self._chunk(step, context) > room:", "        while step > SMALLEST_STEP:"),
        ("a smaller chunk is off the ladder", "max(SMALLEST_STEP, round_down(step - 1))", "max(SMALLEST_STEP, step // 2)"),
        ("chunks that do not fit", "        while step > SMALLEST_STEP and self._chunk(step, context) > room:", "        while False:"),
        ("a prompt in the middle is counted twice", "(claim for claim in claims if not claim.is_prefilled)", "(claim for claim in claims)"),
        ("requests that do not fit are let in", "        return self.needed(claims) <= self.limit_bytes", "        return True"),
    ),
    *_of(
        "mlx_backend/planning/memory.py",
        "tests/mlx_backend/planning/test_memory.py tests/mlx_backend/kv_cache/test_kv_cache.py tests/mlx_backend/planning/test_memory_limits.py",
        ("a model with windows runs out of memory in long prompts", "min(allocated(num_tokens), shape.window + chunk)", "min(allocated(num_tokens), shape.window)"),
        ("memory runs out as rows come and go", "    moved = sum(min(layer, EAGER_BYTES) for layer in layers) + max(layers, default=0)", "    moved = sum(min(layer, EAGER_BYTES) for layer in layers)"),
        ("memory runs out as rows come and go in many small layers", "    moved = sum(min(layer, EAGER_BYTES) for layer in layers) + max(layers, default=0)", "    moved = max(layers, default=0)"),
        ("models with sinks run out of memory", "_CPU_SINK_COPIES if attention.has_sinks else ", ""),
        ("hybrid models run out of memory", "    needed += _SSM_COPIES * shape.ssm_heads * min(step, _SSM_STEP) ** 2 * 4\n", ""),
    ),
    *_of(
        "mlx_backend/kv_cache/grouping.py",
        "tests/mlx_backend/kv_cache/test_grouping.py",
        ("one long conversation takes its memory once for every user", "    if max_groups == 1 or _together(lengths, row_bytes) <= _tight(sum(map(row_bytes, lengths))):", "    if True:"),
        ("two short rows cost a group", "    return least + max(_SLACK_BYTES, least // _SLACK_SHARE) // 2", "    return least"),
        ("rows in groups take more than admission counts", "            if size_of(groups, row_bytes) <= most_bytes(lengths, row_bytes, max_groups):", "            if True:"),
        ("all rows are moved whenever one joins", "    if present and len(present) <= num_wanted:", "    if False:"),
        ("groups are divided anyhow", "            total, cut = min(", "            total, cut = max("),
    ),
    *_of(
        "mlx_backend/kv_cache/batch.py",
        "tests/mlx_backend/kv_cache/test_kv_cache.py",
        ("each turnover of rows copies the batch", "        if spare_bytes and self._unused(coming) <= spare_bytes:", "        if False:"),
        ("a place that nobody takes is held for ever", "self._unused_steps > _UNUSED_STEPS or", ""),
        ("states of rows are mixed up when rows change groups", "        order = [places[row] for row in self.rows]", "        order = list(range(len(self.rows)))"),
    ),
    *_of(
        "mlx_backend/kv_cache/batch.py",
        "tests/mlx_backend/prefix_cache/test_prefix_equality.py",
        ("the prefix cache keeps another row's past", "        within = group.rows.index(row)", "        within = 0"),
    ),
    *_of(
        "mlx_backend/model/skeleton.py",
        "tests/mlx_backend/model/test_skeleton.py",
        ("a model with caches of its own runs out of memory in a long prompt", "            shape = replace(shape, token_bytes=token_bytes", "            replace(shape, token_bytes=token_bytes"),
        ("a model with sinks runs out of memory in a long prompt", "_attention(shapes, text, has_sinks=_has_sinks(model))", "_attention(shapes, text)"),
        ("a long prompt of a model with an indexer runs out of memory", "        return float(1.25 * module.n_heads * itemsize + 8)", "        return 0.0"),
        ("a long prompt of a model that keeps latents is planned in small chunks", "    return replace(shape, is_grouped=latent_attention.takes_groups(model))", "    return shape"),
    ),
    *_of(
        "mlx_backend/kv_cache/latent_groups.py",
        "tests/mlx_backend/kv_cache/test_latent_groups.py tests/mlx_backend/kv_cache/test_latent_attention.py",
        ("a long prompt runs out of memory in attention over latents", "    num_heads = max(1, min(shape.num_heads, (MOST_GROUP_BYTES - whole) // head))", "    num_heads = shape.num_heads"),
        ("attention over latents waits for the device after every head", "    num_heads = max(1, min(shape.num_heads, (MOST_GROUP_BYTES - whole) // head))", "    num_heads = 1"),
        ("a short chunk expands the whole context", "    if num_tokens <= shape.most_absorbed_tokens:", "    if num_tokens <= 1:"),
        ("masks of a long prompt are not planned for", "    masks = num_tokens * context * (1 + itemsize)", "    masks = 0 * itemsize"),
        ("the last, shorter chunk of a prompt takes more than was planned", "for each in {shorter, num_tokens}", "for each in {num_tokens}"),
    ),
    *_of(
        "mlx_backend/kv_cache/latent_attention.py",
        "tests/mlx_backend/kv_cache/test_latent_attention.py",
        ("scores of all heads are alive at once", "            mx.eval(outs[-1])", "            pass"),
        ("a token sees those after it in a long prompt", "    added = None if mask.size == 1 else mask", "    added = None"),
        ("rotary positions are lost in short chunks", "    return mx.concatenate([latents.latent, latents.rope], axis=-1)", "    return mx.concatenate([latents.latent, 0 * latents.rope], axis=-1)"),
        ("the latents are read once for every head of a row", "    folded = (queries * scale).reshape(rows, 1, heads, dim)", "    folded = queries * scale"),
        ("a model is changed by looking at it", "        return False\n    finally:\n        restore(model)", "        return False\n    finally:\n        pass"),
        ("an index picks columns out of nothing", "return _View(member, self._defers_chunks, is_indexed=True)", "return _View(member, self._defers_chunks)"),
    ),
    *_of(
        "mlx_backend/kv_cache/chunked.py",
        "tests/mlx_backend/model/test_skeleton.py",
        ("three of four layers of a model with attention in chunks take no memory", "        return CacheShape(kind, part_shape(cache.keys), part_shape(cache.values), window=window)", "        return CacheShape(kind)"),
    ),
    *_of(
        "mlx_backend/kv_cache/plain.py",
        "tests/mlx_backend/kv_cache/test_kv_cache.py",
        ("memory of a long request stays taken", "        if rows > num_rows or tokens > columns:", "        if rows > num_rows:"),
        ("memory of a wide batch stays taken", "        if rows > num_rows or tokens > columns:", "        if tokens > columns:"),
        ("what was reserved once is reserved for ever", "        self._reserved = (0, 0)\n        copies,", "        copies,"),
        ("an empty batch keeps its memory", "        if self._num_rows == 0:\n            self.arrays = []", "        if self._num_rows == 0:\n            pass"),
        ("a row takes over another's past", "            array[row : row + 1] = columns", "            pass"),
        ("a row that leaves copies all the others", "        self._copies = [mx.take(array, last, axis=0) for array in self.arrays]", "        self._copies = [array[self._num_rows - 1 : self._num_rows] for array in self.arrays]"),
    ),
    *_of(
        "mlx_backend/kv_cache/rows.py",
        "tests/mlx_backend/kv_cache/test_kv_cache.py",
        ("rows that left keep their memory", "        if (keep_rows, kept) == (num_rows, num_tokens):", "        if False:"),
    ),
    *_of(
        "mlx_backend/kv_cache/rotating.py",
        "tests/mlx_backend/kv_cache/test_kv_cache.py tests/mlx_backend/kv_cache/test_quantized_equality.py",
        ("a quantized window grows with its chunks", "[mx.contiguous(array[:, :, -window:]) if array.shape[2] > window else array for array in columns]", "list(columns)"),
    ),
    *_of(
        "mlx_backend/planning/limits.py",
        "tests/mlx_backend/planning/test_limits.py",
        ("one of several models takes the others' memory", "    return replace(limits, memory_bytes=process_bytes)", "    return limits"),
    ),
    *_of(
        "mlx_backend/planning/wiring.py",
        "tests/mlx_backend/planning/test_wiring.py",
        ("a server does not start on a Mac", "    return min(active_bytes + slack_bytes(num_arrays, page_bytes), recommended_bytes)", "    return active_bytes + slack_bytes(num_arrays, page_bytes)"),
        ("KV caches enter the wired set: the machine panics", "        size //= 2\n    return sizes", "        size //= 4\n    return sizes"),
        ("a weight is not wired, and KV caches take its room", "    return _HEAP_BYTES + num_arrays * page_bytes", "    return num_arrays * page_bytes // 2"),
        ("a machine panics again and again", "    own = [panic for panic in panics if first_wired_at is not None and panic.at >= first_wired_at]", "    own = [panic for panic in panics if first_wired_at is None]"),
        ("two processes wire memory", "    if facts.holder is not None:", "    if False:"),
        ("a 16 GB Mac freezes", "    if free < wanted:", "    if free < 0:"),
    ),
    *_of(
        "mlx_backend/planning/macos.py",
        "tests/mlx_backend/planning/test_macos.py",
        ("every panic counts as the GPU driver's", '_SIGNATURE = re.compile(rb"IOGPU\\w*\\.cpp")', '_SIGNATURE = re.compile(rb"IOGPU")'),
        ("a panic before memory was wired counts", "    at = float(int(calendar[1], 16)) if calendar else about.st_mtime", "    at = about.st_mtime"),
    ),
    *_of(
        "mlx_backend/planning/wired_lock.py",
        "tests/mlx_backend/planning/test_wired_lock.py",
        ("two processes wire memory", "            fcntl.flock(handle, kind | fcntl.LOCK_NB)", "            pass"),
        ("a server that has unwired counts as killed", "            _write(self._handle, Record(None, self._record.first_at))", "            pass"),
        ("a grammar's process keeps the lock", "            fcntl.flock(self._handle, fcntl.LOCK_UN)", "            pass"),
    ),
    *_of(
        "server/lifecycle.py",
        "tests/test_drain.py::test_with_wired_memory_a_second_signal_ends_the_drain_and_a_third_the_process",
        ("Ctrl-C twice loses wired memory until the machine restarts", "        if num_stops > 1 or not server.has_wired():", "        if True:"),
    ),
    *_of(
        "mlx_backend/runners/wired.py",
        "tests/mlx_backend/runners/test_wired.py",
        ("memory stays wired when the server has ended", "            device.unwire()\n", ""),
    ),
    *_of(
        "mlx_backend/runners/device.py",
        "tests/mlx_backend/planning/test_limits.py",
        ("freed buffers are wired, and leave the set again", "    mx.clear_cache()\n    limit = wired_limit", "    limit = wired_limit"),
    ),
    # --- files
    *_of(
        "mlx_backend/model/checkpoint.py",
        "tests/mlx_backend/model/test_checkpoint.py",
        ("a model with a damaged shard answers nonsense", "    for file in files:\n        _check_weights(file)", "    for file in files[:1]:\n        _check_weights(file)"),
        ("a model that is cut off is loaded", "    if size < expected:", "    if False:"),
    ),
    *_of(
        "mlx_backend/model/weight_files.py",
        "tests/mlx_backend/model/test_weight_files.py",
        ("a shard that was left behind makes nonsense", "        return _chosen(named - missing, present, notes, is_indexed=True)", "        return _chosen(present, present, notes, is_indexed=True)"),
        ("half a model is loaded", "    if found and not found <= named:", "    if found:"),
        ("a download of two sets is taken by chance", "    if len(whole) > 1:", "    if False:"),
        ("an index reads files elsewhere", ' or "/" in name or "\\\\" in name', ""),
    ),
    *_of(
        "mlx_backend/model/context_length.py",
        "tests/mlx_backend/model/test_weight_files.py",
        ("a quarter of the context", "    if kind in _YARN:", "    if False:"),
        ("Llama 3.2 has a context that it does not have", "    if kind in _YARN:", '    if kind in _YARN or kind == "llama3":'),
        ("Gemma 3 has eight times its context", ' and not str(section.get("model_type")).startswith(_TOLD_WHOLE)', ""),
    ),
    *_of(
        "mlx_backend/prefix_cache/index.py",
        "tests/mlx_backend/prefix_cache/test_index.py",
        ("what was kept on disk is gone after a restart", "not sibling.children and node.sizes.keys() >= sibling.sizes.keys()", "not sibling.children"),
        ("what is used goes before what is not", "            node.parent.used_at = max(node.parent.used_at, node.used_at)\n", ""),
        ("system prompts go first", "        heap = self._heaps[node.is_system]", "        heap = self._heaps[False]"),
        ("less is found of a prompt than is kept", "max(place - 1, 0) : place + 1]", "place : place + 1]"),
        ("memory is counted twice", "        self._leave(node, tier)\n        shelf", "        shelf"),
    ),
    *_of(
        "mlx_backend/prefix_cache/cache.py",
        "tests/mlx_backend/prefix_cache/test_cache.py",
        ("prompts are computed again after memory was short", "        if not isinstance(error, OutOfMemory) and self._index.get(first.id) is first:", "        if self._index.get(first.id) is first:"),
        ("what is of no use is tried again and again", "            self._index.drop(first)", "            pass"),
    ),
    *_of(
        "mlx_backend/sampling/filters.py",
        "tests/mlx_backend/sampling/test_filters.py",
        ("another request's typical_p takes words away", "(keys < threshold) & (typical_p < 1)", "(keys < threshold)"),
        ("typical_p keeps nothing", "    target = share_of(mx.sum(weights, axis=-1, keepdims=True), typical_p)", "    target = mx.ones(typical_p.shape)"),
    ),
    *_of(
        "mlx_backend/sampling/filters.py",
        "tests/mlx_backend/sampling/test_selection.py",
        ("another request's top_p takes words away", "(keys < threshold) & (top_p < 1)", "(keys < threshold)"),
        ("another request's top_k takes words away", "(logits < threshold) & (top_k <= most)", "(logits < threshold)"),
        ("what is drawn depends on the largest top_k of the batch", "        weights = mx.where(is_left, weights, 0)\n", ""),
        ("equally likely tokens beyond top_k are not counted", " + num_more.astype(mx.uint64) * last", ""),
    ),
    *_of(
        "mlx_backend/sampling/selection.py",
        "tests/mlx_backend/sampling/test_selection.py",
        ("top_p is rounded down", "(low * numerator + _SHARE_MASK) >> _SHARE_BITS", "(low * numerator) >> _SHARE_BITS"),
        ("top_p of flat distributions overflows", "    return high * numerator + ((low * numerator + _SHARE_MASK) >> _SHARE_BITS)", "    return (total * numerator + _SHARE_MASK) >> _SHARE_BITS"),
        ("zeros of either sign are not equally likely", "(values + 0.0).view(mx.uint32)", "values.view(mx.uint32)"),
        ("a token is lost where the vocabulary is no multiple of a group", "    if num_groups * group < vocab:", "    if False:"),
        ("top_k sorts the whole vocabulary", "    if 2 * num * group > vocab:", "    if True:"),
        ("the last bits of a threshold are not looked for", "    while num_bits > 0:", "    while num_bits > 4:"),
        ("on a GPU a pass finds one threshold of several", "            threshold = mx.max(threshold", "            threshold = mx.min(threshold"),
    ),
    *_of(
        "mlx_backend/planning/command_buffers.py",
        "tests/mlx_backend/planning/test_command_buffers.py",
        ("a variable that a user has set is overwritten", "        if variable in environ:", "        if variable in environ and value is None:"),
        ("MLX ends a command buffer after every operation", "    if not 1 <= value <= LARGEST_PER_BUFFER:", "    if value > LARGEST_PER_BUFFER:"),
    ),
    # --- reading calls and thoughts
    *_of(
        "server/text/calls/schemas.py",
        "tests/server/text/calls",
        ("a text in quotes loses them", '    if types == {"string"}:\n        return text', '    if types == {"string"}:\n        return text.strip(\'"\')'),
        ("a number becomes a text", "    return value if type_of(value) in types else text", "    return text"),
        ("a value becomes one of another type", "    return value if type_of(value) in types else text", "    return value"),
        ("null becomes the text null", '    fits = type_of(value) in types or value is None or "string" not in types', '    fits = type_of(value) in types or "string" not in types'),
    ),
    *_of(
        "server/text/parsers/answer.py",
        "tests/server/text/parsers tests/server/text/calls",
        ("tags in a sentence become thoughts", '        return "text" if self._held[end : end + 1] == " " else "means"', '        return "means"'),
        ("a thought without an opening tag is content", "            self._format.habit.note_unopened()\n            self._kind = \"reasoning\"", "            self._format.habit.note_unopened()"),
        ("streams differ from whole answers", "            if found is None or half < found[0]:", "            if found is None:"),
        ("the first answers of every model come late", "                self._format.habit.note_opened()", "                pass"),
        ("frames of Kimi K3 are content", "in_content: list[str] = [self._think_start, self._think_end, *format.frames]", "in_content: list[str] = [self._think_start, self._think_end]"),
    ),
    *_of(
        "server/text/conversation.py",
        "tests/server/text/test_conversation.py tests/server/text/test_template_traits.py",
        ("a second system message is lost", "    said = _joined(*(message.get(\"content\") for message in systems))", "    said = _joined(systems[0].get(\"content\"))"),
        ("ids of calls and of results differ", '        return {**message, "tool_call_id": _short_id(message.get("tool_call_id"))}', "        return message"),
        ("a second call is lost", "        for place, call in enumerate(calls):", "        for place, call in enumerate(calls[:1]):"),
        ("a conversation is refused for two users in a row", "    if traits.alternates:", "    if False:"),
        ("content beside calls is lost", '    if message.get("content"):\n        yield {key: value', '    if False:\n        yield {key: value'),
    ),
    *_of(
        "server/dialects/openai_chat/thinking.py",
        "tests/server/dialects/openai_chat",
        ("a model thinks that should not", "0 if is_off else wanted", "wanted"),
        ("thoughts are shown that nobody wants", "        fields.include_reasoning is False\n        or", "        False\n        or"),
        ("of two wishes one is dropped silently", "        if value != said[0][1]:", "        if False:"),
        ("an effort is ignored", '        kwargs["reasoning_effort"] = effort', "        pass"),
    ),
    *_of(
        "server/text/grammar.py",
        "tests/server/text/test_grammar.py tests/server/dialects/test_grammar_fields.py",
        ("a number of a schema becomes another", "    elif isinstance(number, int) and not is_exact_integer(number):", "    elif False:"),
        ("patternProperties are ignored", '_UNSOUND = frozenset({"patternProperties"})', "_UNSOUND: frozenset[str] = frozenset()"),
        ("the largest integer is refused", "number == _LEAST_TOO_LARGE - 1", "False"),
    ),
    *_of(
        "server/service/mock_script.py",
        "tests/server/service/test_mock_script.py",
        ("the last line of a script wins", "next((line.text for line in self._script if", "next((line.text for line in reversed(self._script) if"),
        ("an earlier message answers again", 'prompt.messages[-1].get("content")', 'prompt.messages[0].get("content")'),
    ),
    *_of(
        "server/dialects/metrics/routers.py",
        "tests/server/dialects/metrics/test_routers.py",
        ("a full replica looks empty to a router", "return min(stats.planned_bytes / info.memory.free_bytes, 1.0)", "return 0.0"),
        ("a queue looks empty to a router", "stats.num_waiting)", "0)"),
        ("prompts that are being computed do not run", "stats.num_running + stats.num_prefilling", "stats.num_running"),
    ),
    # --- streams and texts
    *_of(
        "server/sse.py",
        "tests/server/test_sse.py tests/server/test_app.py tests/server/dialects/metrics",
        ("a client that left goes on being answered", "            await self._source.aclose()", "            pass"),
        ("an error in a stream is an answer that stops", "            yield encode_error(self._error)", "            pass"),
        ("errors in streams are counted nowhere", "                note_error(scope, self._error)", "                pass"),
        ("100 % of a prompt is said over and over", 'if done < total else "keep-alive"', 'if done <= total else "keep-alive"'),
        ("an unexpected error leaves nothing in the log", '                logger.exception("unexpected error in a stream")', "                pass"),
    ),
    *_of(
        "server/text/pipeline.py",
        "tests/server/text/test_pipeline.py",
        ("an answer goes on behind its end", "        if self._done:\n            return []", ""),
        ("a stop string that has begun is lost at the end", "        kept += _content(self._stop.flush() if is_end else \"\")", "        kept += []"),
        ("a stop string ends an answer before its least length", "            may_end = self._num_output_tokens > self._min_tokens", "            may_end = True"),
        ("the end token is text", '        if event.finish_reason != "stop":  # an end token says nothing', "        if True:"),
        ("the last character is lost", "            text += self._detokenizer.flush()", "            pass"),
        ("an answer that was cut is completed", 'self._parser.flush(is_cut=reason != "stop")', "self._parser.flush(is_cut=False)"),
    ),
    *_of(
        "server/text/stop.py",
        "tests/server/text/test_stop.py",
        ("half of a stop string is in the stream", "        kept = self._tail_start(seen)", "        kept = len(seen)"),
        ("a stop string is found in one piece alone", "        seen = self._held + text", "        seen = text"),
        ("of two stop strings the later one ends", "        return min(complete)[1:] if complete else None", "        return max(complete)[1:] if complete else None"),
        ("an empty stop string ends everything", "filter(None, strings)", "strings"),
        ("what is held back is lost at the end", '        held, self._held = self._held, ""\n        return held', '        self._held = ""\n        return ""'),
    ),
    *_of(
        "server/text/detokenizer.py",
        "tests/server/text/test_detokenizer.py tests/server/text/test_hf_tokenizer.py",
        ("half characters are shown", "        is_open = text.endswith(_REPLACEMENT) or len(text) <= len(self._read_text)", "        is_open = False"),
        ("a stream stands still at a broken character", "        if is_open and len(self._ids) - self._num_read < _MAX_HELD:", "        if is_open:"),
        ("the last half character is lost", '        text = self._decoder.decode(b"", final=True)', '        text = ""'),
        ("every space at the beginning is lost", "        self._strip = 0 if kept else self._strip - len(text)", "        pass"),
    ),
    *_of(
        "server/security/rate.py",
        "tests/server/security/test_rate.py tests/server/security/test_gate.py",
        ("a key that was idle may ask without end", "        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)", "        self._level = self._level + (now - self._at) * self.per_minute / 60"),
        ("limits are of an hour", "(now - self._at) * self.per_minute / 60", "(now - self._at) * self.per_minute / 3600"),
        ("tokens are not taken", "        bucket.take(num_tokens)\n", ""),
        ("requests are not counted", "            self._requests.take(1)", "            pass"),
        ("what was not written is not given back", "        self._level = min(self.per_minute, self.level + amount)", "        pass"),
        ("a request larger than a minute is never let in", "        needed = min(num_tokens, bucket.per_minute)", "        needed = num_tokens"),
        ("an answer longer than planned is free", "                self._bucket.take(num_tokens - self._num_tokens)", "                pass"),
    ),
    *_of(
        "mlx_backend/engine/throughput.py",
        "tests/mlx_backend/engine/test_throughput.py",
        ("one slow step makes all chunks tiny", "(0.2 if self.decode_s else 1.0) * (seconds - self.decode_s)", "1.0 * (seconds - self.decode_s)"),
        ("deep in a prompt chunks stall others", "    return nearest, float(_GROWTH_PER_BUCKET ** max(bucket - nearest, 0))", "    return nearest, 1.0"),
        ("bad news is believed late", "    weight = 0.7 if measured > known else 0.3", "    weight = 0.3"),
        ("chunks are of any size", "        return limit if fitting >= limit else chunk_sizes.round_down(max(1, fitting))", "        return max(1, fitting)"),
        ("before anything was measured a chunk is as large as can be", "            return max(1, min(limit, _UNKNOWN_CHUNK_TOKENS))", "            return limit"),
        ("restoring is taken for computing", "            self.restored_token_s = _moved(self.restored_token_s, seconds / num_tokens)\n            return", "            pass"),
        ("small chunks get smaller and smaller", "        return self._fixed_s or 0.0", "        return 0.0"),
        ("a prompt starves beside a slow decode", "_LEAST_SHARE / (1 - _LEAST_SHARE) * (self.decode_s + self.fixed_s)", "0.0"),
    ),
    *_of(
        "mlx_backend/engine/throughput.py",
        "tests/mlx_backend/engine/test_chunking.py",
        ("padding makes tokens dear", "        num_tokens = self._num_computed(num_tokens)\n", ""),
        ("padding takes no time", "token_s, num_tokens = self.token_s(start), self._num_computed(num_tokens)", "token_s = self.token_s(start)"),
    ),
    *_of(
        "mlx_backend/planning/chunk_sizes.py",
        "tests/mlx_backend/planning/test_chunk_sizes.py",
        ("a size is skipped", "    return power + power // 2 if size == power > 1 else 2 * power", "    return 2 * power"),
        ("a padded chunk is larger than chunks may be", "    return min(max(_LEAST_PADDED, round_up(num_tokens)), most)", "    return max(_LEAST_PADDED, round_up(num_tokens))"),
        ("padding is counted too low", "    return max(size - before - 1 for", "    return min(size - before - 1 for"),
    ),
    *_of(
        "mlx_backend/runners/shapes.py",
        "tests/mlx_backend/runners/test_shapes.py",
        ("padding stays in the caches", "        plan.shape.traits.handler.set_length(leaf, stop)", "        pass"),
        ("a state is computed with padding", "    return all(plan.shape.traits.is_cut for plan in plans)", "    return True"),
        ("warming up has no end", "                if time.monotonic() - began > most_s:", "                if False:"),
        ("warming up takes memory that is not there", "            if self._budget is None or self._budget.admits(claims):", "            if True:"),
        ("rows of different lengths are not warmed up", "        for lengths in _LENGTHS, _LENGTHS[:1]:", "        for lengths in (_LENGTHS[:1],):"),
        ("a failure while warming up ends the server", "        except _ERRORS as error:", "        except ZeroDivisionError as error:"),
    ),
    *_of(
        "mlx_backend/kv_cache/attention.py",
        "tests/mlx_backend/kv_cache/test_attention.py",
        ("all heads' copies are made at once", "    if not outs or not isinstance(part, QuantizedColumns):", "    if True:"),
    ),
    *_of(
        "mlx_backend/runners/mlx.py",
        "tests/mlx_backend/runners/test_mlx.py",
        ("spare buffers go with every chunk", "        mx.eval([cache.state for cache in caches])\n\n    # ---- decode", "        mx.eval([cache.state for cache in caches])\n        mx.clear_cache()\n\n    # ---- decode"),
    ),
    *_of(
        "mlx_backend/runners/mlx.py",
        "tests/mlx_backend/runners/test_shapes.py",
        ("padding goes beyond the context", "            most = min(self._config.scheduler.max_chunk_tokens, self._context - chunk.start)", "            most = self._config.scheduler.max_chunk_tokens"),
        ("padding is not counted", "            has_fused=device.has_fused_attention(),\n            pads_chunks=self._pads_chunks,\n", "            has_fused=device.has_fused_attention(),\n"),
        ("warming up waits for the first request", "        if needs_warm_shapes:\n", "        if False:\n"),
    ),
    *_of(
        "mlx_backend/engine/stream.py",
        "tests/mlx_backend/engine/test_stream.py tests/mlx_backend/engine/test_engine.py",
        ("tokens of a choice that was aborted come all the same", "        self._pending = deque(event for event in self._pending if event.index != index)\n", ""),
        ("a client that left is computed for", "            self._close(tuple(self._open.values()), \"aborted\")", "            pass"),
        ("a slow client's backlog stops all others", "        events = tuple(self._pending.popleft() for _ in range(min(_MOST_EVENTS, len(self._pending))))", "        events = tuple(self._pending.popleft() for _ in range(len(self._pending)))"),
        ("an error comes before the tokens that were there", "        while not self._pending:\n            if self._error", "        while not self._pending or self._error is not None:\n            if self._error"),
        ("whoever waits is not woken", "            self._waiter.set_result(None)", "            pass"),
        ("a stream of several prompts is told of one", "num_prompt_tokens=sum(p.num_prompt_tokens for p in self._groups)", "num_prompt_tokens=self._groups[0].num_prompt_tokens"),
    ),
    # --- what is told of requests
    *_of(
        "server/service/transcript.py",
        "tests/server/service/test_transcript.py tests/server/dialects/openai_completions",
        ("`best_of` prefers short answers", "        return choice.sum_logprobs / max(len(choice.ids), 1)", "        return choice.sum_logprobs"),
        ("token ids are told twice", "        choice.num_shown = len(choice.ids)\n", ""),
        ("a choice is told another prompt", "        return index // self._n\n", "        return index % self._n\n"),
        ("prompt log-probabilities are those of another prompt", "self._logprobs[event.index // self._n]", "self._logprobs[event.index]"),
    ),
    *_of(
        "server/service/share.py",
        "tests/server/service/test_share.py",
        ("the first model takes all memory", "        num_parts += 1", "        pass"),
        ("a small model goes without for a large one", "for other in sorted(others, key=lambda each: each.wanted_bytes):", "for other in others:"),
    ),
    *_of(
        "mlx_backend/engine/counters.py",
        "tests/mlx_backend/engine/test_engine.py tests/mlx_backend/engine/test_device_failures.py tests/mlx_backend/engine/test_counters.py",
        ("a 503 says to come again in an hour", "max(1, min(60, math.ceil(num_waiting / 10 / pace)))", "math.ceil(num_waiting / 10 / pace)"),
        ("aborted requests count as finished", '        self.num_finished += how == "finished"', "        self.num_finished += 1"),
        ("stalls are not counted", "        self.num_stalls += self.stepped_at is not None and now - self.stepped_at > max_stall_s\n", ""),
        ("requests that have just come are not counted", "num_waiting=num_arrived + (", "num_waiting=("),
        ("an old burst counts as pace", "if now - at < _LATELY_S]", "]"),
    ),
    *_of(
        "server/service/record.py",
        "tests/server/service/test_record.py tests/server/test_log_privacy.py",
        ("what was not written is charged", "        self.rate_grant.settle(self.num_prompt_tokens + self.num_output_tokens)\n", ""),
        ("a long answer is free while it runs", "        self.rate_grant.use(self.num_prompt_tokens + self.num_output_tokens)\n", ""),
    ),
    *_of(
        "server/logs.py",
        "tests/server/test_log_privacy.py",
        ("prompts are in the log", "    prompt_log.setLevel(logging.INFO if with_prompts else _OFF)", "    prompt_log.setLevel(logging.INFO)"),
    ),
    # --- prompts
    *_of(
        "server/text/truncation.py",
        "tests/server/text/test_truncation.py",
        ("the system prompt goes first", '        if message.get("role") == "system":\n            continue', ""),
        ("the question itself is left out", "    return max(0, len(_turns(messages)) - 1)", "    return len(_turns(messages))"),
        ("an answer loses its question", '        if message.get("role") == "user" or not turns:', "        if True:"),
    ),
    *_of(
        "server/text/borders.py",
        "tests/server/text/test_borders.py",
        ("system prompts are never recognised", "        return tuple(one[: num_common(one, other)])", "        return ()"),
        ("the memory of system prompts grows for ever", "            while len(self._system_prompts) > _MOST_SYSTEM_PROMPTS:", "            while False:"),
        ("a border is where nothing can be kept", "if 0 < border < len(ids))", ")"),
        ("a system prompt is taken for one of other tools", "        key = _key(system, kwargs, tools)", "        key = _key(system, kwargs, ())"),
    ),
    # --- drawing
    *_of(
        "mlx_backend/core/row.py",
        "tests/mlx_backend/sampling/test_masks.py tests/mlx_backend/engine/test_grammar.py",
        ("an answer is shorter than `min_tokens`", "        return self.num_started_tokens < self.new.min_tokens", "        return False"),
    ),
    *_of(
        "mlx_backend/sampling/masks.py",
        "tests/mlx_backend/sampling/test_masks.py tests/mlx_backend/engine/test_grammar.py",
        ("a token that is not allowed is drawn", "            logits[batch_rows] = mx.where(allowed, logits[batch_rows], _NEVER)", "            pass"),
        ("a row of another request is masked", "    places = mx.array([place for place, _ in masks])", "    places = mx.array(list(range(len(masks))))"),
        ("a token beyond the grammar's vocabulary is drawn", 'ljust(4 * num_words, b"\\0")', 'ljust(4 * num_words, b"\\xff")'),
        ("an answer that can only end never does", "            logits = mx.where(mx.max(barred, axis=-1, keepdims=True) > _NEVER, barred, logits)", "            logits = barred"),
        ("a token number that the model has not ends the server", "if token < vocab_size]", "]"),
    ),
    *_of(
        "mlx_backend/sampling/penalties.py",
        "tests/mlx_backend/sampling/test_sampler.py tests/mlx_backend/sampling/test_dry.py",
        ("repetition makes negative tokens likelier", "mx.where(chosen > 0, chosen / self._repetition, chosen * self._repetition)", "chosen / self._repetition"),
        ("presence is a matter of frequency", "self._presence * was_output", "self._presence * self._num_output"),
        ("the prompt is not counted for repetition", "        seen = was_output | self._in_prompt", "        seen = was_output"),
        ("what was written last is not counted", "        self._num_output = self._num_output.at[places, tokens[self._batch_rows]].add(1.0)", "        pass"),
        ("after memory ran out penalties are forgotten", "    if row.output_ids:\n        num_output", "    if False:\n        num_output"),
        ("penalties of one request fall on another", "previous.counts_of(row) if previous is not None and row in previous._places else", "previous.counts_of(next(iter(previous._places))) if previous is not None and row in previous._places else"),
    ),
    # --- several machines
    *_of(
        "mlx_backend/model/rank_shapes.py",
        "tests/mlx_backend/model/test_rank_shapes.py",
        ("heads that do not divide are rounded down", "            if now.get(attribute) == count // _PROBE_SIZE != count and", "            if False and"),
        ("groups of quantization that do not divide end the load", "            if not (is_quantized and is_last) or path == \"scales\":", "            if not (is_quantized and is_last):"),
        ("every rank of a pipeline is planned as the first", "_read_rank(build, parallel, StandIn(rank, size), split) for rank", "_read_rank(build, parallel, StandIn(0, size), split) for rank"),
        ("a pipeline's uneven split is planned as an even one", "**({} if split is None else {\"split\": list(split)})", "**{}"),
    ),
    *_of(
        "mlx_backend/planning/ranks.py",
        "tests/mlx_backend/planning/test_ranks.py",
        ("a split that does not add up is taken", "    if min(split) < 1 or sum(split) != splits.num_layers:", "    if False:"),
        ("what cannot be divided is loaded", "    failing = [each for each in splits.divisibles if each.count % size]", "    failing: list[Divisible] = []"),
    ),
    *_of(
        "mlx_backend/planning/ranks_plan.py",
        "tests/mlx_backend/planning/test_ranks_plan.py",
        ("a context is promised that one rank has no room for", "        context = min(memory.context for memory in fitting)", "        context = max(memory.context for memory in fitting)"),
        ("more chats are promised than one rank admits", "        return min(map(chats_that_fit", "        return max(map(chats_that_fit"),
        ("the slower way is recommended", "    is_faster = tensor.compared.value > pipeline.compared.value", "    is_faster = tensor.compared.value < pipeline.compared.value"),
    ),
    *_of(
        "mlx_backend/planning/ranks_budget.py",
        "tests/mlx_backend/planning/test_ranks_budget.py",
        ("a request is admitted that one rank has no room for", "        return max(size - more for", "        return min(size - more for"),
        ("a request waits for ever for room that every rank has", "size - more for size, more", "size for size, more"),
        ("a chunk is larger than one rank has room for", "        return min(budget.step_for(", "        return max(budget.step_for("),
    ),
    *_of(
        "server/hostfile.py",
        "tests/server/test_hostfile.py",
        ("one host holds two ranks", "            if place in seen:", "            if False:"),
        ("a port that is none is taken", "0 < int(port) < 65536", "True"),
        ("a host's name is taken for an option of ssh", "(?!-)", ""),
    ),
    *_of(
        "server/commands/doctor_ranks.py",
        "tests/server/commands/test_doctor_ranks.py",
        ("a cable that is not in is not noticed", "if states.get(device) != \"PORT_ACTIVE\"]", "if False]"),
        ("Thunderbolt Bridge keeps RDMA from the ports", "return \"off\" if line.startswith(\"*\") else \"on\"", "return \"off\""),
        ("other files have the same fingerprint", "f\"{record.digests[name]}  {name}\\n\"", "f\"{name}\\n\""),
    ),
)  # fmt: skip
