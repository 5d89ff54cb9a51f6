//! Chat templates: programs from strangers.

use crate::{CHAT, Case, Done, Refused, Verdict, battery, case, train};

fn template(name: &str, verdict: Verdict, text: impl Into<String>) -> Case {
    let text = text.into();
    case(name, verdict, move |folder| {
        let model = folder.text_model();
        folder.write("model/chat_template.jinja", &text);
        train(model, folder.write("data.jsonl", CHAT))
    })
}

const TURNS: &str =
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}";

#[test]
fn templates_from_strangers() {
    let refused = Refused("chat_template.jinja");
    let no_answer = Refused("has no answer to learn");
    let bad = |name: &str, text: &str| template(name, refused, text);
    battery(&[
        template("turns", Done, TURNS),
        bad("unfinished", "{% for m in messages %}"),
        bad(
            "a list that doubles",
            "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        ),
        template(
            "a namespace in itself",
            no_answer,
            "{% set ns = namespace(n=0) %}{% set ns.n = ns %}{{ ns.n }}{{ ns == ns.n }}",
        ),
        bad("a tag that closes with its opening", "{%}{% if messages %}a{% endif %}"),
        bad("unknown filter", "{{ messages | rot13 }}"),
        bad("unknown function", "{{ open('/etc/passwd') }}"),
        bad("unknown test", "{% if messages is evil %}{% endif %}"),
        bad("unknown statement", "{% exec 'ls' %}"),
        bad("raise_exception", "{{ raise_exception('only \u{1b}[31mred\nmodels') }}"),
        bad("include", "{% include '/etc/passwd' %}"),
        bad("import", "{% import '/etc/passwd' as x %}"),
        bad("extends", "{% extends 'base' %}"),
        bad("way to Python", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        bad("range of 10^12", "{% for i in range(1000000000000) %}a{% endfor %}"),
        bad(
            "nested loops",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        ),
        bad("string bomb", "{{ 'a' * 100000000000 }}"),
        bad(
            "doubling bomb",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        ),
        bad(
            "replace bomb",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aaaa') %}{% endfor %}{{ ns.x }}",
        ),
        bad(
            "join bomb",
            "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x, ns.x] | join('aaaa') %}{% endfor %}{{ ns.x }}",
        ),
        bad("indent bomb", "{{ 'a\n' | indent(100000000000) }}"),
        bad("format bomb", "{{ '%0999999999d' | format(1) }}"),
        bad("ljust bomb", "{{ 'a'.ljust(100000000000) }}"),
        bad("a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        bad("division by zero", "{{ 1 / 0 }}"),
        bad("modulo by zero", "{{ 1 % 0 }}"),
        template("smallest by minus one", no_answer, "{{ (-9223372036854775807 - 1) // -1 }}"),
        bad("nested 10k deep", &format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000))),
        bad("blocks nested 10k deep", &"{% if 1 %}".repeat(10_000)),
        template("a chain of 10k signs", no_answer, format!("{{{{ {}1 }}}}", "- ".repeat(10_000))),
        template("says nothing", no_answer, ""),
        template("forgets the answers", no_answer, "{{ bos_token }}Hello"),
    ]);
}
