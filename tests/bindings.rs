//! The Rust twins of `ffi/` are what bindgen makes of the headers, and a C compiler lays the structs out in
//! the same way. With `QLORA_BLESS=1` the twins are written.

use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use qlora_train::ffi::{
    Adamw, Adamw8bit, Attention, AttentionBackward, Cast, CrossEntropy, Dequantize, Dropout,
    Embedding, Glu, Matmul, Matmul4bit, Rmsnorm, Rope, Rows, SumSquares,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generated() -> String {
    let bindings = bindgen::builder()
        .header(root().join("ffi/all.h").display().to_string())
        .use_core()
        .derive_default(true)
        .derive_partialeq(true)
        .disable_header_comment()
        .raw_line("//! Made by bindgen from `ffi/`; see `tests/bindings.rs`.")
        .raw_line("#![allow(missing_docs, reason = \"the headers have them\")]")
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("headers that libclang reads");
    bindings.to_string()
}

#[test]
fn twins_are_what_the_headers_give() {
    let path = root().join("src/ffi/bindings.rs");
    let made = generated();
    if std::env::var_os("QLORA_BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    assert!(committed == made, "{} is stale: run with QLORA_BLESS=1", path.display());
}

/// Size and offsets of a twin, as C asserts them of the struct of the same name.
macro_rules! asserts {
    ($($name:ident { $($field:ident),* $(,)? })*) => {{
        let mut text = String::from("#include <stddef.h>\n#include \"all.h\"\n");
        $(
            let (name, size) = (stringify!($name), size_of::<$name>());
            writeln!(text, "_Static_assert(sizeof({name}) == {size}, \"{name}\");").unwrap();
            $({
                let (field, offset) = (stringify!($field), offset_of!($name, $field));
                let place = format!("offsetof({name}, {field})");
                writeln!(text, "_Static_assert({place} == {offset}, \"{field}\");").unwrap();
            })*
        )*
        text
    }};
}

#[test]
fn a_c_compiler_lays_structs_out_in_the_same_way() {
    let text = asserts! {
        Adamw { values, grads, m, v, len, beta1, beta2, clip, keep, size, root, epsilon }
        Adamw8bit {
            values, grads, m, v, m_absmax, v_absmax, signed_map, unsigned_map, len, beta1, beta2, clip, keep,
            size, root, epsilon, smallest,
        }
        AttentionBackward {
            q, k, v, o, d_o, lse, delta, segments, dq, dk, dv, q_stride, k_stride, v_stride, o_stride,
            d_o_stride, lse_stride, dq_stride, dk_stride, dv_stride, heads, kv_heads, head_dim, window,
            scale, soft_cap,
        }
        Attention {
            q, k, v, o, lse, segments, q_stride, k_stride, v_stride, o_stride, lse_stride, heads,
            kv_heads, head_dim, window, scale, soft_cap,
        }
        Cast { from, to, rows, cols, from_stride, to_stride, from_wide, to_wide }
        CrossEntropy {
            logits, targets, losses, stride, vocabulary, soft_cap, scale, has_gradient,
        }
        Dropout {
            x, out, rows, cols, x_stride, out_stride, seed, stream, threshold, scale, add,
        }
        Rows { packed, spread, index, packed_stride, spread_stride, cols }
        Embedding { table, tokens, out, table_stride, out_stride, cols, scale }
        Glu {
            gate_up, h, d_gate_up, gate_up_stride, h_stride, d_gate_up_stride, width, activation,
        }
        Rope { x, tables, x_stride, table_stride, heads, head_dim, half, backward }
        Dequantize { codes, absmax, nested_absmax, map, out, values, offset, book }
        Matmul {
            a, b, out, bias, residual, a_stride, b_stride, out_stride, residual_stride, k, m, n, alpha, add,
            wide,
        }
        Matmul4bit { product, absmax, nested_absmax, map, offset, book }
        Rmsnorm {
            x, weight, out, dy, x_stride, out_stride, dy_stride, groups, width, eps, center, add,
        }
        SumSquares { x, partial, out, len }
    };
    let (status, output) = compile(&text);
    assert!(status, "{output}");
    let wrong = text.replace("offsetof(Rmsnorm, add) == ", "offsetof(Rmsnorm, add) == 1");
    assert!(!compile(&wrong).0, "a wrong offset is seen");
}

/// Whether C accepts `text`, and what it says.
fn compile(text: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let source: PathBuf = folder.path().join("layout.c");
    fs::write(&source, text).unwrap();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cc::Build::new();
    build.target(&target).host(&target).opt_level(0).cargo_metadata(false).std("c11");
    let mut command = build.include(root().join("ffi")).get_compiler().to_command();
    let output = command.args(["-fsyntax-only".as_ref(), source.as_os_str()]).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
