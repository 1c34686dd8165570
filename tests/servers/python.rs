//! Servers of Python's world that bind their port without ado.

use crate::common::{Home, apps};
use crate::lives;

const WSGI: &str = "def app(environ, start):\n    \
         start('200 OK', [('Content-Length', '3')])\n    \
         return [b'ok\\n']\n";

const ASGI: &str = "async def app(scope, receive, send):\n    \
         await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', b'3')]})\n    \
         await send({'type': 'http.response.body', 'body': b'ok\\n'})\n";

fn run(file: &str, text: &str, words: &[&str]) {
    let (Some(python), Some(packages)) = (apps::python(), apps::python_servers()) else {
        return;
    };
    let home = Home::new();
    let port = home.port();
    home.write(file, text);
    let address = format!("127.0.0.1:{port}");
    let port_word = port.to_string();
    let words: Vec<&str> = [python, "-m"]
        .into_iter()
        .chain(words.iter().map(|word| match *word {
            "ADDRESS" => address.as_str(),
            "PORT" => port_word.as_str(),
            word => word,
        }))
        .collect();
    let command = apps::toml_command(&words);
    home.config(&format!(
        "[app.web]\n{command}\ninstances = 2\nlisten = \"{address}\"\nenv = {{ PYTHONPATH = {} }}\n",
        toml::Value::from(packages.to_str().expect("UTF-8"))
    ));
    lives(&home, port);
}

#[test]
fn gunicorn() {
    run(
        "app.py",
        WSGI,
        &["gunicorn", "--bind", "ADDRESS", "--workers", "2", "app:app"],
    );
}

#[test]
fn uvicorn() {
    run(
        "app.py",
        ASGI,
        &[
            "uvicorn",
            "--lifespan",
            "off",
            "--log-level",
            "warning",
            "--port",
            "PORT",
            "app:app",
        ],
    );
}
